"""The Kata drop-in: what each runtime reads, in its own words and no others.

The keys are those that Kata 4.1.0 knows: of the Go runtime the hypervisor and runtime
structures in src/runtime/pkg/katautils/config.go, of runtime-rs the structures in
src/libs/kata-types/src/config (hypervisor/mod.rs, runtime.rs). The Go runtime refuses a
drop-in with an unknown hypervisor key; runtime-rs ignores it without a word.
"""

import tomllib
from dataclasses import replace
from typing import Any, Final

import pytest

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.kata import Configuration, Effective
from kata_gpu.model.kubernetes import PodResources
from kata_gpu.plan.kata import drop_in as ours
from kata_gpu.plan.kata import effective
from kata_gpu.plan.kata.dialect import DIALECTS
from kata_gpu.settings import blueprint
from tests.passthrough import TEXT

_HYPERVISOR_OF_BOTH: Final = {
    "path", "kernel", "image", "initrd", "firmware", "machine_type", "cold_plug_vfio",
    "pcie_root_port", "pcie_switch_port", "confidential_guest", "sev_snp_guest",
    "default_memory", "default_maxmemory", "memory_offset", "memory_slots", "enable_iommu",
    "enable_iommu_platform", "guest_hook_path", "kernel_params", "enable_annotations",
    "disable_image_nvdimm",
}  # fmt: skip
_RUNTIME_OF_BOTH: Final = {
    "vfio_mode", "pod_resource_api_sock", "kubelet_root_dir", "sandbox_cgroup_only",
    "static_sandbox_resource_mgmt", "emptydir_mode", "experimental",
}  # fmt: skip
KNOWN: Final[dict[Runtime, dict[str, set[str]]]] = {
    Runtime.GO: {
        "hypervisor": _HYPERVISOR_OF_BOTH
        | {"hot_plug_vfio", "firmware_volume", "enable_numa", "numa_mapping"},
        "runtime": _RUNTIME_OF_BOTH
        | {"disable_guest_empty_dir", "create_container_timeout", "experimental_force_guest_pull"},
    },
    Runtime.RUST: {
        "hypervisor": _HYPERVISOR_OF_BOTH | {"guest_extension_images"},
        "runtime": _RUNTIME_OF_BOTH | {"name", "hypervisor_name", "agent_name"},
    },
}
_PORTS: Final = ("no-port", "bridge-port", "root-port", "switch-port")

THROUGH_US: Final = PodResources(
    kubelet="/k0s/pod-resources/kubelet.sock", link="/var/lib/kata-gpu/pod-resources.sock"
)

both_runtimes = pytest.mark.parametrize("runtime", list(Runtime))


def handler(
    runtime: Runtime, *, hypervisor: str = "qemu", pcie_root_ports: int | None = None
) -> KataHandler:
    return KataHandler(
        name="kata",
        runtime=runtime,
        config="/opt/kata/configuration.toml",
        hypervisor=hypervisor,
        pod_resource_api_sock="/run/k0s/kubelet/pod-resources/kubelet.sock",
        pcie_root_ports=pcie_root_ports,
    )


def knowing(*sources: str) -> Effective:
    """Return the base file of a Kata that knows from which sources it takes devices."""
    text = f"[hypervisor.qemu]\n[runtime]\npod_resource_device_sources = {list(sources)}\n"
    files = Configuration(path="/opt/kata/configuration.toml", text=text)
    return effective.merge(files, DIALECTS[Runtime.GO])


def drop_in(runtime: Runtime, functions: int = 4) -> dict[str, Any]:
    return tomllib.loads(ours.render(handler(runtime), functions))


@both_runtimes
def test_a_drop_in_has_two_tables(runtime: Runtime) -> None:
    assert set(drop_in(runtime)) == {"hypervisor", "runtime"}


@both_runtimes
def test_a_runtime_knows_every_key(runtime: Runtime) -> None:
    found = drop_in(runtime)
    assert set(found["hypervisor"]["qemu"]) <= KNOWN[runtime]["hypervisor"]
    assert set(found["runtime"]) <= KNOWN[runtime]["runtime"]


@both_runtimes
def test_devices_are_plugged_cold_and_the_guest_drives_them(runtime: Runtime) -> None:
    found = drop_in(runtime)
    assert found["hypervisor"]["qemu"]["cold_plug_vfio"] == "root-port"
    assert found["runtime"]["vfio_mode"] == "guest-kernel"


def test_the_go_runtime_is_told_not_to_plug_hot_for_it_refuses_both() -> None:
    assert drop_in(Runtime.GO)["hypervisor"]["qemu"]["hot_plug_vfio"] == "no-port"


def test_runtime_rs_is_not_told_what_it_does_not_know() -> None:
    assert "hot_plug_vfio" not in drop_in(Runtime.RUST)["hypervisor"]["qemu"]


@both_runtimes
def test_ports_are_of_a_kind_that_kata_knows(runtime: Runtime) -> None:
    table = drop_in(runtime)["hypervisor"]["qemu"]
    assert {table[key] for key in table if key.endswith("_plug_vfio")} <= set(_PORTS)


@both_runtimes
def test_the_kubelets_socket_is_the_handlers(runtime: Runtime) -> None:
    socket = drop_in(runtime)["runtime"]["pod_resource_api_sock"]
    assert socket == "/run/k0s/kubelet/pod-resources/kubelet.sock"


@both_runtimes
@pytest.mark.parametrize("asked", [PodResources(), THROUGH_US], ids=["kubelet", "us"])
def test_without_a_word_in_the_blueprint_it_asks_who_knows_all(
    runtime: Runtime, asked: PodResources
) -> None:
    quiet = replace(handler(runtime), pod_resource_api_sock=None)
    found = tomllib.loads(ours.render(quiet, 1, None, asked))["runtime"]
    assert found == {
        "vfio_mode": "guest-kernel",
        "pod_resource_api_sock": asked.link or "/var/lib/kubelet/pod-resources/kubelet.sock",
    }


@both_runtimes
def test_the_blueprints_word_on_whom_to_ask_is_the_last(runtime: Runtime) -> None:
    found = tomllib.loads(ours.render(handler(runtime), 1, knowing("device-plugin"), THROUGH_US))
    assert found["runtime"] == drop_in(runtime)["runtime"]


@pytest.mark.parametrize(
    ("said", "sources"),
    [
        (("device-plugin",), ["device-plugin", "dra"]),
        (("dra", "device-plugin"), ["dra", "device-plugin"]),
    ],
)
def test_a_kata_that_reads_dra_devices_by_itself_asks_kubelet_for_them(
    said: tuple[str, ...], sources: list[str]
) -> None:
    quiet = replace(handler(Runtime.GO), pod_resource_api_sock=None)
    found = tomllib.loads(ours.render(quiet, 1, knowing(*said), THROUGH_US))["runtime"]
    assert found["pod_resource_api_sock"] == THROUGH_US.kubelet
    assert found["pod_resource_device_sources"] == sources


def test_a_kata_that_could_read_dra_devices_is_not_told_to_where_there_are_none() -> None:
    quiet = replace(handler(Runtime.GO), pod_resource_api_sock=None)
    found = tomllib.loads(ours.render(quiet, 1, knowing("device-plugin"), PodResources()))
    assert "pod_resource_device_sources" not in found["runtime"]


@pytest.mark.parametrize(
    ("offer", "link"), [("dra", THROUGH_US.link), ("device-plugin", None), ("none", None)]
)
def test_kata_asks_us_only_where_a_pool_is_offered_through_dra(
    offer: str, link: str | None
) -> None:
    wanted = blueprint.parse(TEXT.replace("mode =", f'offer = "{offer}"\nmode ='))
    assert replace(wanted, pod_resources=THROUGH_US).asked == replace(THROUGH_US, link=link)


@both_runtimes
def test_what_the_base_file_may_list_is_left_to_it(runtime: Runtime) -> None:
    replaced_whole = {"kernel_params", "enable_annotations", "default_memory"}
    assert not replaced_whole & set(drop_in(runtime)["hypervisor"]["qemu"])


def test_the_table_is_the_handlers_hypervisor() -> None:
    text = ours.render(handler(Runtime.GO, hypervisor="clh"), 1)
    assert set(tomllib.loads(text)["hypervisor"]) == {"clh"}


@both_runtimes
def test_a_text_depends_on_nothing_but_its_arguments(runtime: Runtime) -> None:
    assert ours.render(handler(runtime), 4) == ours.render(handler(runtime), 4)


@both_runtimes
def test_a_text_says_whose_it_is(runtime: Runtime) -> None:
    assert ours.render(handler(runtime), 4).startswith("# Written by kata-gpu")


@pytest.mark.parametrize(
    ("runtime", "functions", "ports"),
    [
        (Runtime.GO, 0, 1),
        (Runtime.GO, 1, 1),
        (Runtime.GO, 8, 8),
        (Runtime.GO, 16, 16),
        (Runtime.GO, 17, 16),
        (Runtime.RUST, 0, 1),
        (Runtime.RUST, 17, 17),
        (Runtime.RUST, 22, 22),
        (Runtime.RUST, 64, 22),
    ],
)
def test_there_are_as_many_root_ports_as_functions_and_as_a_runtime_can_have(
    runtime: Runtime, functions: int, ports: int
) -> None:
    assert drop_in(runtime, functions)["hypervisor"]["qemu"]["pcie_root_port"] == ports


@pytest.mark.parametrize(
    ("runtime", "asked", "ports"),
    [(Runtime.GO, 3, 3), (Runtime.GO, 32, 16), (Runtime.RUST, 3, 3), (Runtime.RUST, 32, 22)],
)
def test_a_fixed_number_of_root_ports_is_the_blueprints(
    runtime: Runtime, asked: int, ports: int
) -> None:
    assert ours.root_ports(handler(runtime, pcie_root_ports=asked), 8) == ports
