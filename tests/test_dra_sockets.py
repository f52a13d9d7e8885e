"""Kubelet finds a DRA driver, loses it, finds it again, and hears how its devices are."""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host.watches import Watches
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.publish.kubelet import plugin_sockets
from kata_gpu.publish.kubelet.plugin_registration import VERSIONS, Standing
from kata_gpu.publish.kubelet.protos import (
    dra_v1_pb2,
    dra_v1beta1_pb2,
    plugin_registration_v1_pb2,
)
from kata_gpu.publish.kubelet.sockets import PATH_MAX_BYTES, Client
from tests.dra_node import Node, Turns, device, registered, switch, until
from tests.kubelet.claims import allocated

FIRST: Final = "0000-01-00-0"
SECOND: Final = "0000-02-00-0"


@pytest.fixture
def node(short_path: Path) -> Node:
    """Two GPUs on VFIO, and a switch, which is another driver's."""
    devices = (device(1), device(2), switch(3))
    made = Node(short_path, Turns({one.name: one for one in devices}))
    made.claims.give("one", FIRST)
    return made


# Registration


def test_kubelet_is_told_the_versions_in_the_order_it_chooses_by(node: Node) -> None:
    assert VERSIONS == (
        "v1.DRAPlugin",
        "v1beta1.DRAPlugin",
        "v1.DRAResourceHealth",
        "v1alpha1.DRAResourceHealth",
    )

    async def main() -> None:
        async with node.running() as (driver, kubelet):
            (plugin,) = kubelet.plugins.values()
            assert (plugin.driver, plugin.versions) == (GPU_DRIVER, VERSIONS)
            assert plugin.endpoint == node.directory / "dra-a.sock"
            assert plugin.dra is dra_v1_pb2
            assert driver.registration.standing is Standing.REGISTERED
            assert driver.registration.said_at is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("knows", "wire"),
    [
        (("v1.DRAPlugin", "v1beta1.DRAPlugin"), dra_v1_pb2),
        (("v1beta1.DRAPlugin",), dra_v1beta1_pb2),
        (("v1beta1.DRAPlugin", "v1alpha1.DRAResourceHealth"), dra_v1beta1_pb2),
    ],
)
def test_an_older_kubelet_is_served_too(node: Node, knows: tuple[str, ...], wire: object) -> None:
    async def main() -> None:
        async with node.driver().serve(), node.kubelet(knows=knows).run() as kubelet:
            await registered(kubelet)
            assert kubelet.newest(GPU_DRIVER).dra is wire
            assert await kubelet.start_pod("pod", "one") == ["nvidia.com/pgpu=0000:01:00.0"]
            if "v1alpha1.DRAResourceHealth" in knows:
                await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Healthy", "it is heard")
            await kubelet.stop_pod("pod")

    asyncio.run(main())


def test_what_kubelet_has_against_the_driver_is_seen(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        driver = node.driver()
        async with driver.serve(), node.kubelet(knows=("v2.DRAPlugin",)).run():
            await until(
                lambda: driver.registration.standing is Standing.REFUSED, "kubelet refuses it"
            )
            assert "no supported version" in driver.registration.error

    asyncio.run(main())
    assert f"kubelet refuses DRA driver {GPU_DRIVER}: no supported version" in caplog.text


def test_the_answer_to_get_info_is_constant_and_there_at_once(node: Node) -> None:
    wire = plugin_registration_v1_pb2

    async def main() -> None:
        async with node.driver().serve():
            client = Client(node.root / "plugins_registry" / f"{GPU_DRIVER}-a-reg.sock")
            found = [
                await client.ask(wire, "Registration.GetInfo", wire.InfoRequest(), timeout_s=1)
                for _ in range(3)
            ]
            await client.close()
            assert found[0] == found[1] == found[2]

    asyncio.run(main())


# Sockets


@pytest.mark.parametrize("gone", ["registration", "plugin", "both folders"])
def test_sockets_that_vanish_are_served_anew(node: Node, gone: str) -> None:
    paths = plugin_sockets.paths(node.root, GPU_DRIVER, "a")

    async def main() -> None:
        async with node.running() as (_, kubelet):
            before = next(iter(kubelet.plugins.values()))
            match gone:
                case "registration":
                    paths.registration.unlink()
                case "plugin":
                    paths.plugin.unlink()
                case _:
                    shutil.rmtree(node.root / "plugins")
                    shutil.rmtree(node.root / "plugins_registry")
            await until(
                lambda: before not in kubelet.plugins.values() and kubelet.plugins,
                "kubelet has it anew",
            )
            assert await kubelet.retry_pod("pod", "one")

    asyncio.run(main())


def test_sockets_that_cannot_be_served_anew_are_tried_again(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    paths = plugin_sockets.paths(node.root, GPU_DRIVER, "a")

    async def main() -> None:
        async with node.running(look_every_s=0.05) as (_, kubelet):
            assert kubelet.plugins
            shutil.rmtree(node.root / "plugins_registry")
            (node.root / "plugins_registry").touch()
            await until(lambda: "it is tried again" in caplog.text, "it could not be served")
            (node.root / "plugins_registry").unlink()
            await until(paths.registration.exists, "it is served")

    asyncio.run(main())


def test_a_driver_that_could_not_be_served_at_first_prepares_claims_later(node: Node) -> None:
    node.root.mkdir(exist_ok=True)
    (node.root / "plugins_registry").touch()

    async def main() -> None:
        driver = node.driver()
        with pytest.raises(HostError, match="cannot serve"):
            async with driver.serve():
                pytest.fail("it is served")
        (node.root / "plugins_registry").unlink()
        async with driver.serve(), node.kubelet().run() as kubelet:
            await registered(kubelet)
            assert await kubelet.start_pod("pod", "one", timeout_s=5)

    asyncio.run(main())


def test_a_socket_that_vanishes_before_it_was_seen_is_served_anew(short_path: Path) -> None:
    paths = plugin_sockets.paths(short_path, GPU_DRIVER, "a")

    async def wipe() -> None:
        while True:
            paths.plugin.unlink(missing_ok=True)
            await asyncio.sleep(0)

    async def main() -> None:
        sockets = plugin_sockets.PluginSockets(paths, (), ())
        wiping = asyncio.create_task(wipe())
        await sockets.open()
        wiping.cancel()
        assert not paths.plugin.exists()
        assert await sockets.mend()
        assert paths.plugin.exists()
        await sockets.close()

    asyncio.run(main())


def test_a_stop_removes_both_sockets_and_kubelet_forgets_the_driver(node: Node) -> None:
    async def main() -> None:
        async with node.kubelet().run() as kubelet:
            async with node.driver().serve():
                await registered(kubelet)
            await registered(kubelet, plugins=0)

    asyncio.run(main())
    assert not [path for path in node.root.rglob("*") if path.is_socket()]


def test_the_socket_that_is_served_on_is_there_before_the_one_it_is_found_by(node: Node) -> None:
    paths = plugin_sockets.paths(node.root, GPU_DRIVER, "a")

    async def main() -> None:
        for folder in (paths.plugin.parent, paths.registration.parent):
            folder.mkdir(parents=True)
        with Watches.open() as watches:
            watches.watch((paths.plugin, paths.registration))
            async with node.driver().serve():
                assert changed(watches)[:2] == [
                    "create dra-a.sock",
                    f"create {GPU_DRIVER}-a-reg.sock",
                ]
            assert changed(watches) == ["delete dra-a.sock", f"delete {GPU_DRIVER}-a-reg.sock"]

    asyncio.run(main())


def changed(watches: Watches) -> list[str]:
    """Return what came and went of sockets, in its order."""
    told = (hint.text.replace("'", "").split(" ") for hint in watches.drain())
    found = [(words[0], Path(words[-1]).name) for words in told]
    return [f"{verb} {name}" for verb, name in found if verb in {"create", "delete"}]


def test_what_is_no_lock_in_the_place_of_one_keeps_nobody_from_serving(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    (node.directory / "agent-folder.lock").mkdir(parents=True)
    (node.directory / "agent-link.lock").symlink_to("/etc/hostname")
    os.mkfifo(node.directory / "agent-pipe.lock")

    async def main() -> None:
        async with node.running() as (_, kubelet):
            await kubelet.start_pod("pod", "one")

    asyncio.run(main())
    assert caplog.text.count("cannot clear up after agent") == 3


def test_two_drivers_of_one_agent_do_not_meet(node: Node) -> None:
    gpu = node.driver()
    fabric = type(gpu)(replace(node.settings(), driver=FABRIC_DRIVER), node.agent)
    node.claims.put("two", allocated(FIRST), allocated("0000-03-00-0", driver=FABRIC_DRIVER))
    node.turns.claimed = lambda: gpu.claimed_units() | fabric.claimed_units()

    async def main() -> None:
        async with gpu.serve(), fabric.serve(), node.kubelet().run() as kubelet:
            await registered(kubelet, plugins=2)
            assert await kubelet.start_pod("pod", "two") == [
                "nvidia.com/pgpu=0000:01:00.0",
                "nvidia.com/nvswitch=0000:03:00.0",
            ]
            assert gpu.claimed_units() == {"0000:01:00.0"}
            assert fabric.claimed_units() == {"0000:03:00.0"}

    asyncio.run(main())


@pytest.mark.parametrize("driver", [GPU_DRIVER, FABRIC_DRIVER])
def test_a_pods_uid_fits_into_the_names_of_the_usual_kubelet(driver: str) -> None:
    uid = "b5b0ee2f-6ad5-4fc5-b20f-33a0ad6bfa3e"
    found = plugin_sockets.paths(Path("/var/lib/kubelet"), driver, uid)
    assert found.registration.name == f"{driver}-{uid}-reg.sock"
    assert found.plugin == Path(f"/var/lib/kubelet/plugins/{driver}/dra-{uid}.sock")


def test_a_name_that_is_too_long_is_a_hash_and_another_for_each_agent() -> None:
    kubelet = Path("/var/lib/k0s/kubelet/of/some/depth")
    uids = ("b5b0ee2f-6ad5-4fc5-b20f-33a0ad6bfa3e", "b5b0ee2f-6ad5-4fc5-b20f-33a0ad6bfa3f")
    found = [plugin_sockets.paths(kubelet, GPU_DRIVER, uid).registration for uid in uids]
    assert len(set(found)) == 2
    for path in found:
        assert len(str(path)) <= PATH_MAX_BYTES
        assert path.name.endswith("-reg.sock")


def test_a_kubelet_directory_that_is_too_long_is_an_error(short_path: Path) -> None:
    node = Node(short_path / ("x" * 90), Turns({}))

    async def main() -> None:
        async with node.driver().serve():
            pytest.fail("it serves where nobody can connect")

    with pytest.raises(HostError, match="choose a shorter directory"):
        asyncio.run(main())


# Slices


def test_kubelet_wipes_the_slices_at_its_start_and_of_a_driver_that_is_away(node: Node) -> None:
    now: list[float] = [0]
    wiped: list[str | None] = []

    async def main() -> None:
        kubelet = node.kubelet(clock=lambda: now[0], on_wipe=wiped.append)
        async with kubelet.run():
            async with node.driver("a").serve():
                await until(lambda: kubelet.seen_at == {GPU_DRIVER: 0}, "it is connected")
            await registered(kubelet, plugins=0)
            now[0] = 29
            async with node.driver("b").serve():
                await until(lambda: kubelet.seen_at == {GPU_DRIVER: 29}, "it is connected again")
            await registered(kubelet, plugins=0)
            assert wiped == [None]
            now[0] = 60
            await until(lambda: wiped == [None, GPU_DRIVER], "it is wiped")

    asyncio.run(main())


# Health


def test_each_device_of_the_driver_is_told_of(node: Node) -> None:
    async def main() -> None:
        async with node.running() as (_, kubelet):
            await until(lambda: kubelet.messages, "something is heard")
            assert kubelet.messages[0] == {
                (GPU_DRIVER, FIRST): "Healthy",
                (GPU_DRIVER, SECOND): "Healthy",
            }

    asyncio.run(main())


def test_a_device_that_is_lost_while_a_pod_has_it_is_told_of_and_stays_prepared(
    node: Node,
) -> None:
    async def main() -> None:
        async with node.running() as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Healthy", "it is well")
            node.turns.change(FIRST, is_healthy=False, reason="gone from the bus" + "!" * 2000)
            driver.changed()
            await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Unhealthy", "it is lost")
            assert kubelet.message(GPU_DRIVER, FIRST).startswith("gone from the bus")
            assert len(kubelet.message(GPU_DRIVER, FIRST)) == 1000
            assert kubelet.health(GPU_DRIVER, SECOND) == "Healthy"
            assert driver.claimed_units() == {"0000:01:00.0"}
            node.turns.change(FIRST, is_healthy=True, reason="available")
            driver.changed()
            await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Healthy", "it is back")
            await kubelet.stop_pod("pod")

    asyncio.run(main())


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_device_that_vanishes_is_unhealthy_and_not_dropped(
    node: Node, *, is_restarted: bool
) -> None:
    async def main() -> None:
        async with node.running() as (driver, kubelet):
            await kubelet.start_pod("pod", "one")
            if is_restarted:
                del node.turns.devices[FIRST]
            else:
                await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Healthy", "it is well")
                del node.turns.devices[FIRST]
                driver.changed()
                await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Unhealthy", "it is gone")
        async with node.running() as (_, kubelet):
            await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Unhealthy", "it is gone")
            assert kubelet.message(GPU_DRIVER, FIRST) == "it is gone from this node"
            assert kubelet.health(GPU_DRIVER, SECOND) == "Healthy"

    asyncio.run(main())


def test_a_turn_that_changed_nothing_makes_no_message(node: Node) -> None:
    async def main() -> None:
        async with node.running() as (driver, kubelet):
            await until(lambda: kubelet.messages, "something is heard")
            for _ in range(5):
                driver.changed()
                await asyncio.sleep(0)
            node.turns.change(FIRST, is_healthy=False)
            driver.changed()
            await until(lambda: kubelet.health(GPU_DRIVER, FIRST) == "Unhealthy", "it is heard")
            assert len(kubelet.messages) == 2

    asyncio.run(main())


def test_kubelet_hears_often_enough_never_to_hold_a_device_for_unknown(node: Node) -> None:
    async def main() -> None:
        async with node.running(health_again_s=0.05) as (_, kubelet):
            await until(lambda: len(kubelet.messages) >= 4, "the same is heard again")
            heard = kubelet.heard(GPU_DRIVER, FIRST)
            assert heard.timeout_s >= 3 * 10

    asyncio.run(main())


def test_kubelet_that_hears_nothing_holds_a_device_for_unknown(node: Node) -> None:
    now = [0.0]

    async def main() -> None:
        async with node.driver().serve(), node.kubelet(clock=lambda: now[0]).run() as kubelet:
            await until(lambda: kubelet.messages, "something is heard")
            now[0] = 29
            assert kubelet.health(GPU_DRIVER, FIRST) == "Healthy"
            now[0] = 31
            assert kubelet.health(GPU_DRIVER, FIRST) == "Unknown"

    asyncio.run(main())
