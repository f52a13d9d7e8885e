"""Workloads may read of their devices, and no CDI file of it stops a pod."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.discover.cdi import read
from kata_gpu.host import Host
from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.plan import cdi
from kata_gpu.publish.kubelet.device_metadata import DeviceMetadata
from kata_gpu.publish.kubelet.prepared import PreparedClaim
from tests.dra_node import Node, Turns, device
from tests.kubelet.claims import NAMESPACE, allocated
from tests.kubelet.dra_manager import DraManager, PrepareError

FIRST: Final = "0000-01-00-0"
SECOND: Final = "0000-02-00-0"


@pytest.fixture
def node(short_path: Path) -> Node:
    """Two GPUs on VFIO; the root of its files is that of a host."""
    devices = (device(1), device(2))
    return Node(short_path / "var/lib/kubelet", Turns({one.name: one for one in devices}))


@pytest.fixture
def folder(short_path: Path) -> Path:
    """The CDI directory."""
    made = short_path / "var/run/cdi"
    made.mkdir(parents=True)
    return made


def metadata_files(node: Node) -> list[Path]:
    return sorted((node.directory / "dra-device-metadata").rglob("*.json"))


def spec(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_without_the_setting_there_is_none(node: Node, folder: Path) -> None:
    node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running(cdi_directory=folder) as (_, kubelet):
            await kubelet.start_pod("pod", "one")

    asyncio.run(main())
    assert (metadata_files(node), list(folder.iterdir())) == ([], [])


def test_what_was_written_goes_with_its_claim_whatever_the_setting_is_by_then(
    node: Node, folder: Path
) -> None:
    node.claims.give("one", FIRST)

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            found = await kubelet.start_pod("pod", "one")
        async with node.running(cdi_directory=folder) as (driver, kubelet):
            assert await kubelet.start_pod("pod", "one") == found * 2
            assert metadata_files(node)
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}

    asyncio.run(main())
    assert (metadata_files(node), list(folder.iterdir())) == ([], [])


def test_what_a_killed_agent_left_is_removed_whatever_the_setting_is_by_then(
    node: Node, folder: Path
) -> None:
    left = folder / f"{GPU_DRIVER}_metadata_u-9_gpu.json"
    left.write_text("{}")

    async def main() -> None:
        async with node.driver(cdi_directory=folder).serve():
            pass

    asyncio.run(main())
    assert not left.exists()


def test_each_request_has_a_file_that_its_first_device_mounts(node: Node, folder: Path) -> None:
    uid = node.claims.put("one", allocated(FIRST, "gpu/big"), allocated(SECOND, "gpu/big"))

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            found = await kubelet.start_pod("pod", "one")
            assert found == [
                "nvidia.com/pgpu=0000:01:00.0",
                f"{GPU_DRIVER}/metadata={uid}_gpu",
                "nvidia.com/pgpu=0000:02:00.0",
            ]
            assert await again(kubelet) == found
            (path,) = metadata_files(node)
            assert path.relative_to(node.directory) == Path(
                f"dra-device-metadata/{uid}/gpu/metadata.json"
            )
            (mount,) = spec(folder / f"{GPU_DRIVER}_metadata_{uid}_gpu.json")["devices"][0][
                "containerEdits"
            ]["mounts"]
            assert mount == {
                "hostPath": str(path),
                "containerPath": "/var/run/kubernetes.io/dra-device-attributes/resourceclaims/"
                f"one/gpu/{GPU_DRIVER}-metadata.json",
                "options": ["ro", "bind"],
            }
            told = spec(path)
            assert told["kind"] == "DeviceMetadata"
            assert told["metadata"] == {"name": "one", "namespace": NAMESPACE, "uid": uid}
            (request,) = told["requests"]
            assert request["name"] == "gpu/big"
            assert [one["name"] for one in request["devices"]] == [FIRST, SECOND]
            assert request["devices"][0]["attributes"] == {
                "confidential": {"bool": False},
                "resetMethod": {"string": "flr"},
            }
            await kubelet.stop_pod("pod")
            assert (metadata_files(node), list(folder.iterdir())) == ([], [])

    asyncio.run(main())


async def again(kubelet: DraManager) -> list[str]:
    """Let another run of kubelet prepare the claim again, and return what is new."""
    other = DraManager(kubelet.root, kubelet.claims)
    async with other.run():
        while not other.plugins:
            await asyncio.sleep(0.01)
        found = await other.start_pod("pod", "one")
    return found[len(found) // 2 :]


def test_a_claim_from_a_template_is_found_by_the_pods_own_name(node: Node, folder: Path) -> None:
    uid = node.claims.give("pod-x7f", FIRST)
    node.claims.objects["pod-x7f"]["metadata"]["annotations"] = {
        "resource.kubernetes.io/pod-claim-name": "gpus"
    }

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            await kubelet.start_pod("pod", "pod-x7f")

    asyncio.run(main())
    text = (folder / f"{GPU_DRIVER}_metadata_{uid}_gpu.json").read_text()
    assert f"/resourceclaimtemplates/gpus/gpu/{GPU_DRIVER}-metadata.json" in text
    assert spec(metadata_files(node)[0])["podClaimName"] == "gpus"


def test_no_runtime_has_anything_against_its_files(node: Node, folder: Path) -> None:
    ours = cdi.render("nvidia.com/pgpu", {"0000:01:00.0": ("/dev/null",)})
    assert ours is not None
    (folder / "kata-gpu-nvidia.com_pgpu.json").write_text(ours)
    node.claims.give("one", FIRST)
    node.claims.put("two", allocated(SECOND, "a"), allocated(SECOND, "b"))

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            await kubelet.start_pod("pod", "one", "two")

    asyncio.run(main())
    root = folder.parents[2]
    (root / "dev").mkdir()
    (root / "dev/null").symlink_to("/dev/null")
    found = read(Host.at(root), "/var/run/cdi")
    assert len(found.files) == 4
    assert cdi.judge(found) == ()


def test_a_pod_claim_name_that_is_no_name_is_refused(node: Node, folder: Path) -> None:
    node.claims.give("one", FIRST)
    node.claims.objects["one"]["metadata"]["annotations"] = {
        "resource.kubernetes.io/pod-claim-name": "../.."
    }

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (driver, kubelet):
            with pytest.raises(PrepareError, match="pod-claim-name is"):
                await kubelet.start_pod("pod", "one")
            assert driver.claims() == {}

    asyncio.run(main())
    assert list(folder.iterdir()) == []


def test_what_a_killed_agent_left_is_removed_and_nothing_else(node: Node, folder: Path) -> None:
    uid = node.claims.give("one", FIRST)
    left = folder / f"{GPU_DRIVER}_metadata_u-9_gpu.json"
    others = folder / "nvidia.com_gpu.json"
    orphan = node.directory / "dra-device-metadata" / "u-9" / "gpu/metadata.json"

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            await kubelet.start_pod("pod", "one")
        for path in (left, others, orphan):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        async with node.driver(cdi_directory=folder, device_metadata=True).serve():
            pass

    asyncio.run(main())
    names = {path.name for path in folder.iterdir()}
    assert names == {others.name, f"{GPU_DRIVER}_metadata_{uid}_gpu.json"}
    assert [path.parent.parent.name for path in metadata_files(node)] == [uid]


def test_a_claim_that_cannot_be_unprepared_keeps_its_files(node: Node, folder: Path) -> None:
    uid = node.claims.give("one", FIRST)
    lock = node.directory / "serialize.lock"

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            found = await kubelet.start_pod("pod", "one")
            lock.unlink()
            lock.mkdir()
            with pytest.raises(PrepareError, match="cannot open the lock"):
                await kubelet.stop_pod("pod")
            lock.rmdir()
            assert await again(kubelet) == found

    asyncio.run(main())
    assert [path.name for path in folder.iterdir()] == [f"{GPU_DRIVER}_metadata_{uid}_gpu.json"]


def test_a_claim_of_the_same_name_keeps_its_files_when_the_older_one_goes(
    node: Node, folder: Path
) -> None:
    node.claims.give("one", FIRST)
    older = node.named("one")

    async def main() -> None:
        async with node.preparer(
            metadata=lambda home: DeviceMetadata(home, folder, is_wanted=True)
        ) as (preparer, _):
            await preparer.prepare(older)
            uid = node.claims.give("one", SECOND)
            await preparer.prepare(node.named("one"))
            await preparer.unprepare(older)
            assert [spec(path)["metadata"]["uid"] for path in metadata_files(node)] == [uid]

    asyncio.run(main())


def test_a_claim_with_the_longest_name_has_files(node: Node, folder: Path) -> None:
    name = "a" * 253
    node.claims.give(name, FIRST)

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (_, kubelet):
            await kubelet.start_pod("pod", name)
            assert metadata_files(node)

    asyncio.run(main())


class Killed(BaseException):
    """The end of the process, which no handler sees."""


class Mortal(DeviceMetadata):
    """Its process is killed as soon as the files are gone."""

    def remove(self, prepared: PreparedClaim) -> None:
        super().remove(prepared)
        raise Killed


def test_files_that_went_with_a_killed_agent_are_written_anew(node: Node, folder: Path) -> None:
    uid = node.claims.give("one", FIRST)
    file = folder / f"{GPU_DRIVER}_metadata_{uid}_gpu.json"

    async def main() -> None:
        async with node.preparer(
            "a", metadata=lambda home: Mortal(home, folder, is_wanted=True)
        ) as (first, _):
            prepared = await first.prepare(node.named("one"))
            assert prepared is not None
            with pytest.raises(Killed):
                await first.unprepare(node.named("one"))
            assert not file.exists()
        async with node.preparer(
            "b", metadata=lambda home: DeviceMetadata(home, folder, is_wanted=True)
        ) as (
            second,
            checkpoint,
        ):
            again = await second.prepare(node.named("one"))
            assert again == replace(prepared, owner="b")
            assert file.exists()
            await second.unprepare(node.named("one"))
            assert checkpoint.claims() == {}

    asyncio.run(main())
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing_prepared(node: Node, folder: Path) -> None:
    node.claims.give("one", FIRST)
    folder.rmdir()
    folder.touch()

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (driver, kubelet):
            with pytest.raises(PrepareError, match="cannot write"):
                await kubelet.start_pod("pod", "one")
            assert driver.claims() == {}
            folder.unlink()
            folder.mkdir()
            assert await kubelet.start_pod("pod", "one")

    asyncio.run(main())


def test_files_that_cannot_be_removed_hold_up_no_pod(
    node: Node, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = node.claims.give("one", FIRST)
    file = folder / f"{GPU_DRIVER}_metadata_{uid}_gpu.json"

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            file.unlink()
            file.mkdir()
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}

    asyncio.run(main())
    assert "it is removed at the agent's next start" in caplog.text


# Whoever may write in the driver's folder leads nobody out of it


UID: Final = "00000001-0000-4000-8000-000000000000"
"""Of the first claim."""

LINKED: Final = (
    "dra-device-metadata",
    f"dra-device-metadata/{UID}",
    f"dra-device-metadata/{UID}/gpu",
)


def outside(node: Node) -> Path:
    """Return somebody else's folder, with one of each name in it that we would write to."""
    made = node.root / "elsewhere"
    for path in (f"{UID}/gpu", "gpu", "passwords"):
        (made / path).mkdir(parents=True)
        (made / path / "theirs").touch()
    return made


def link(node: Node, name: str, target: Path) -> None:
    """Have a folder of the driver's be a link to *target*."""
    at = node.directory / name
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.is_dir():
        shutil.rmtree(at)
    at.symlink_to(target)


def everything(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link(node: Node, folder: Path, name: str) -> None:
    uid = node.claims.give("one", FIRST)
    target = outside(node)
    before = everything(target)

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (driver, kubelet):
            link(node, name, target)
            with pytest.raises(PrepareError, match=f"its folder is a link to '{target}'"):
                await kubelet.start_pod("pod", "one")
            assert uid not in driver.claims()

    asyncio.run(main())
    assert (everything(target), list(folder.iterdir())) == (before, [])


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_removed_through_a_link(node: Node, folder: Path, name: str) -> None:
    node.claims.give("one", FIRST)
    target = outside(node)
    before = everything(target)

    async def main() -> None:
        async with node.running(cdi_directory=folder, device_metadata=True) as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            link(node, name, target)
            await kubelet.stop_pod("pod")
            assert driver.claims() == {}
        async with node.driver(cdi_directory=folder).serve():
            pass

    asyncio.run(main())
    assert (everything(target), list(folder.iterdir())) == (before, [])
