"""A node's labels say what a RuntimeClass selects on, and are written when they change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.errors import HostError
from kata_gpu.model.blueprint import Blueprint, KataHandler, Mode, Runtime
from kata_gpu.model.confidential import CcMode
from kata_gpu.model.pci import PciFunction
from kata_gpu.model.platform import Platform, Tee
from kata_gpu.model.report import NodeState
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.kubernetes import labels
from kata_gpu.plan.runtime import classes
from kata_gpu.publish.kubernetes import client, node
from kata_gpu.publish.kubernetes.errors import NotFoundError
from kata_gpu.publish.kubernetes.node import LabelPublisher, Write
from kata_gpu.publish.kubernetes.pacing import Pacing
from tests.api_server import ApiServer, api_server, validation
from tests.kubernetes_devices import gpu
from tests.node_states import kata, node_state, unit
from tests.values import PLATFORM, SWITCH_CLASS, blueprint_of, function, pool
from tests.waiting import Clock, until

PLAIN: Final = KataHandler(name="kata-qemu-nvidia-gpu", runtime=Runtime.GO, config="/a.toml")
SNP: Final = KataHandler(name="kata-qemu-nvidia-gpu-snp", runtime=Runtime.GO, config="/b.toml")
TDX: Final = KataHandler(name="kata-qemu-nvidia-gpu-tdx", runtime=Runtime.GO, config="/c.toml")
H100: Final = function("01:00.0", product_name="GH100 [H100 SXM5 80GB]")
GPUS: Final = blueprint_of(pool("gpus"), pool("host", mode=Mode.HOST))
SNP_HOST: Final = replace(PLATFORM, iommufd=True, tees=(Tee.SEV_SNP,))
SOON: Final = Pacing(start_spread_s=0, retry_s=0.02, retry_max_s=0.05)


def said(
    state: NodeState,
    blueprint: Blueprint = GPUS,
    *functions: PciFunction,
    **more: Any,
) -> dict[str, str]:
    found = {f.address: f for f in functions or (H100,)}
    return labels.labels(state, blueprint, found, more.pop("devices", ()), **more)


# What they say


def test_a_node_with_a_gpu_for_pods_says_all_of_it() -> None:
    assert said(node_state(unit("01:00.0"))) == {
        "kata-gpu.io/ready": "true",
        "kata-gpu.io/snp.ready": "false",
        "kata-gpu.io/tdx.ready": "false",
        "kata-gpu.io/gpu.count": "1",
        "kata-gpu.io/gpu.product": "H100-SXM5-80GB",
        "kata-gpu.io/blueprint": "test",
    }


def test_a_node_without_any_says_no_and_not_nothing() -> None:
    found = said(node_state())
    assert (found["kata-gpu.io/ready"], found["kata-gpu.io/gpu.count"]) == ("false", "0")
    assert found["kata-gpu.io/gpu.product"] == ""


@pytest.mark.parametrize("state", UnitState)
def test_a_node_is_ready_when_a_unit_can_be_had_or_is(state: UnitState) -> None:
    found = said(node_state(unit("01:00.0", state)))
    is_ready = state in {UnitState.AVAILABLE, UnitState.IN_USE}
    assert found["kata-gpu.io/ready"] == ("true" if is_ready else "false")


def test_a_device_that_is_bound_on_claim_makes_a_node_ready() -> None:
    state = node_state(unit("01:00.0", UnitState.HOST))
    assert said(state, devices=[gpu(1)])["kata-gpu.io/ready"] == "true"
    broken = replace(gpu(1), is_healthy=False)
    assert said(state, devices=[broken])["kata-gpu.io/ready"] == "false"


def test_without_any_of_its_kata_handlers_a_node_is_not_ready() -> None:
    blueprint = replace(GPUS, handlers=(PLAIN, SNP))
    for bases, word in (
        ((kata(PLAIN.name, is_there=False), kata(SNP.name, is_there=False)), "false"),
        ((kata(PLAIN.name), kata(SNP.name, is_there=False)), "true"),
    ):
        found = said(node_state(unit("01:00.0"), bases=bases), blueprint)
        assert found["kata-gpu.io/ready"] == word


@pytest.mark.parametrize(
    ("platform", "handlers", "words"),
    [
        (SNP_HOST, (PLAIN, SNP), ("true", "false")),
        (SNP_HOST, (PLAIN,), ("false", "false")),
        (SNP_HOST, (), ("true", "false")),
        (replace(SNP_HOST, iommufd=False), (SNP,), ("false", "false")),
        (replace(SNP_HOST, tees=(Tee.TDX,)), (SNP, TDX), ("false", "true")),
        (replace(SNP_HOST, tees=(Tee.TDX, Tee.SEV_SNP)), (SNP, TDX), ("true", "true")),
        (PLATFORM, (SNP, TDX), ("false", "false")),
    ],
)
def test_confidential_vms_need_platform_iommufd_and_a_handler(
    platform: Platform, handlers: tuple[KataHandler, ...], words: tuple[str, str]
) -> None:
    bases = tuple(kata(handler.name) for handler in handlers)
    state = node_state(unit("01:00.0"), platform=platform, bases=bases)
    found = said(state, replace(GPUS, handlers=handlers))
    assert (found["kata-gpu.io/snp.ready"], found["kata-gpu.io/tdx.ready"]) == words


def test_a_handler_whose_file_is_missing_makes_no_confidential_node() -> None:
    bases = (kata(PLAIN.name), kata(SNP.name, is_there=False))
    state = node_state(unit("01:00.0"), platform=SNP_HOST, bases=bases)
    found = said(state, replace(GPUS, handlers=(PLAIN, SNP)))
    assert (found["kata-gpu.io/ready"], found["kata-gpu.io/snp.ready"]) == ("true", "false")


def test_gpus_alone_are_counted_and_those_of_the_host_are_not() -> None:
    switch = function("02:00.0", SWITCH_CLASS)
    host = function("03:00.0")
    broken = function("04:00.0", product_name="GH100 [H100 SXM5 80GB]")
    state = node_state(
        unit("01:00.0"),
        unit("02:00.0"),
        unit("03:00.0", UnitState.HOST, pool="host"),
        unit("04:00.0", UnitState.QUARANTINED),
    )
    found = said(state, GPUS, H100, switch, host, broken)
    assert found["kata-gpu.io/gpu.count"] == "2"
    assert found["kata-gpu.io/gpu.product"] == "H100-SXM5-80GB"


@pytest.mark.parametrize(
    ("names", "product"),
    [
        (("GA100 [A100 PCIe 40GB]",), "A100-PCIe-40GB"),
        (("Navi 31",), "Navi-31"),
        ((None,), "10de-2330"),
        (("[]",), "10de-2330"),
        (("A [a]", "B [b]"), "mixed"),
        (("A [same]", "B [same]"), "same"),
        (("日本",), "10de-2330"),
        (("x [" + "y" * 80 + "]",), "y" * 63),
    ],
)
def test_the_product_is_named_as_it_is_sold(names: tuple[str | None, ...], product: str) -> None:
    gpus = [function(f"0{i}:00.0", product_name=name) for i, name in enumerate(names, 1)]
    state = node_state(*(unit(str(g.address)) for g in gpus))
    assert said(state, GPUS, *gpus)["kata-gpu.io/gpu.product"] == product


@pytest.mark.parametrize(
    ("mode", "ready"),
    [
        (CcMode.ON, "true"),
        (CcMode.PPCIE, "true"),
        (CcMode.OFF, "false"),
        (CcMode.DEVTOOLS, ""),
    ],
)
def test_nvidias_own_labels_are_there_where_the_mode_is_known(mode: CcMode, ready: str) -> None:
    found = said(node_state(unit("01:00.0")), cc_mode=mode)
    assert found["nvidia.com/cc.mode.state"] == mode
    assert found["nvidia.com/cc.ready.state"] == ready


@given(st.text(max_size=100), st.text(max_size=100), st.none() | st.sampled_from(CcMode))
def test_whatever_a_blueprint_or_a_device_is_called_its_label_is_one(
    version: str, product: str, mode: CcMode | None
) -> None:
    blueprint = replace(GPUS, version=version)
    gpus = function("01:00.0", product_name=product)
    found = said(node_state(unit("01:00.0")), blueprint, gpus, cc_mode=mode)
    assert list(validation.label_faults(found)) == []


def test_what_a_runtime_class_selects_on_is_among_them() -> None:
    blueprint = replace(GPUS, handlers=(PLAIN, SNP, TDX))
    found = said(node_state(unit("01:00.0")), blueprint)
    for name, document in classes.documents(blueprint).items():
        if document["kind"] == "RuntimeClass":
            assert set(document["scheduling"]["nodeSelector"]) <= set(found), name


# How they are written


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as api:
        metadata = {"name": "node-1", "labels": {"zone": "a"}}
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
        yield api


@asynccontextmanager
async def labelling(write: Write, pacing: Pacing = SOON) -> AsyncIterator[LabelPublisher]:
    """Run a publisher until the block ends."""
    publisher = LabelPublisher(write, pacing)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def publish(write: Write, *steps: tuple[Mapping[str, str], Callable[[], object]]) -> None:
    """Have labels written one after another, each until its condition holds."""
    async with labelling(write) as publisher:
        for wanted, condition in steps:
            publisher.update(wanted)
            await until(condition)
        await until(lambda: publisher.trouble is None)


def on_node(api: ApiServer) -> dict[str, str]:
    return dict(api.objects("Node")[0]["metadata"]["labels"])


def publish_to(
    api: ApiServer, path: Path, *steps: tuple[Mapping[str, str], Callable[[], object]]
) -> None:
    async def main() -> None:
        kubeconfig = str(api.kubeconfig(path / "kubeconfig"))
        async with client.connected(kubeconfig, agent="kata-gpu/test") as asking:
            await publish(node.to_node(asking, "node-1"), *steps)

    asyncio.run(main())


def test_a_node_that_the_cluster_has_not_is_named_and_not_made(
    api: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        kubeconfig = str(api.kubeconfig(tmp_path / "kubeconfig"))
        async with client.connected(kubeconfig, agent="kata-gpu/test") as asking:
            with pytest.raises(NotFoundError, match="the cluster has no node node-2; set "):
                await node.to_node(asking, "node-2")({"a": "1"})

    asyncio.run(main())
    assert not api.asked("PATCH")


def test_labels_are_set_changed_and_taken_from_the_node(api: ApiServer, tmp_path: Path) -> None:
    publish_to(
        api,
        tmp_path,
        ({"a": "1", "b": "1"}, lambda: on_node(api) == {"zone": "a", "a": "1", "b": "1"}),
        ({"a": "2"}, lambda: on_node(api) == {"zone": "a", "a": "2"}),
    )
    assert [request.method for request in api.writes] == ["PATCH", "PATCH"]


def test_labels_that_stay_are_not_written_again(api: ApiServer, tmp_path: Path) -> None:
    step = ({"a": "1"}, lambda: on_node(api).get("a") == "1")
    publish_to(api, tmp_path, *[step] * 500)
    assert len(api.writes) == 1


def test_an_agent_that_starts_again_writes_no_label(api: ApiServer, tmp_path: Path) -> None:
    for _ in range(2):
        looked = len(api.asked("GET"))
        step = ({"a": "1"}, lambda before=looked: len(api.asked("GET")) > before)
        publish_to(api, tmp_path, step, ({"a": "1"}, lambda: on_node(api).get("a") == "1"))
    assert len(api.writes) == 1


def _made_anew(api: ApiServer) -> None:
    api.remove("Node", "node-1")
    api.owners.forget(("nodes", "", "node-1"))
    metadata = {"name": "node-1", "labels": {"zone": "a"}}
    api.put({"apiVersion": "v1", "kind": "Node", "metadata": metadata})


def _overwritten(api: ApiServer) -> None:
    metadata = {"name": "node-1", "labels": {"zone": "a", "a": "x"}}
    api.put({"apiVersion": "v1", "kind": "Node", "metadata": metadata})


@pytest.mark.parametrize("do", [_made_anew, _overwritten])
def test_labels_that_are_gone_come_back_after_a_while(
    api: ApiServer, tmp_path: Path, do: Callable[[ApiServer], None]
) -> None:
    clock = Clock()

    async def main() -> None:
        kubeconfig = str(api.kubeconfig(tmp_path / "kubeconfig"))
        async with (
            client.connected(kubeconfig, agent="kata-gpu/test") as asking,
            labelling(node.to_node(asking, "node-1"), replace(SOON, now=clock)) as publisher,
        ):
            publisher.update({"a": "1"})
            await until(lambda: on_node(api).get("a") == "1")
            do(api)
            for _ in range(50):
                clock.now_s += 5
                publisher.update({"a": "1"})
                await asyncio.sleep(0.005)
            assert len(api.asked("PATCH")) == 1
            clock.now_s += 600
            publisher.update({"a": "1"})
            await until(lambda: on_node(api) == {"zone": "a", "a": "1"})

    asyncio.run(main())
    assert len(api.asked("PATCH")) == 2


@pytest.mark.parametrize("status", [0, 403, 409, 429, 500])
def test_a_write_that_fails_is_tried_again(api: ApiServer, tmp_path: Path, status: int) -> None:
    api.fail(status, method="PATCH", times=3, retry_after_s=0)
    publish_to(api, tmp_path, ({"a": "1"}, lambda: on_node(api).get("a") == "1"))
    assert len(api.asked("PATCH")) == 4


def test_a_feature_file_has_a_line_for_each_label(tmp_path: Path) -> None:
    path = tmp_path / "features.d/kata-gpu"
    write = node.to_feature_file(path.parent)
    text = "kata-gpu.io/ready=true\nnvidia.com/cc.ready.state=\n"
    wanted = {"nvidia.com/cc.ready.state": "", "kata-gpu.io/ready": "true"}
    asyncio.run(publish(write, (wanted, lambda: path.is_file() and path.read_text() == text)))
    assert [found.name for found in path.parent.iterdir()] == ["kata-gpu"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_feature_file_that_says_so_already_is_left(tmp_path: Path) -> None:
    path = tmp_path / "kata-gpu"
    path.write_text("a=1\n")
    before = path.stat().st_ino
    asyncio.run(node.to_feature_file(tmp_path)({"a": "1"}))
    assert path.stat().st_ino == before
    asyncio.run(node.to_feature_file(tmp_path)({"a": "2"}))
    assert path.read_text() == "a=2\n"


def test_a_directory_that_cannot_be_written_is_told_and_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "features.d"
    directory.write_text("no directory")
    with pytest.raises(HostError, match=r"features\.d"):
        asyncio.run(node.to_feature_file(directory)({"a": "1"}))

    def is_made() -> bool:
        if directory.is_file():
            directory.unlink()
        return (directory / "kata-gpu").is_file()

    asyncio.run(publish(node.to_feature_file(directory), ({"a": "1"}, is_made)))
