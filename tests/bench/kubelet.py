"""The agent against a kubelet, on a synthetic node with eight GPUs.

The program that plays kubelet is Python as well, and its own share is in every figure. The peers'
figures are of another machine and another driver. One of them can run here as well: `bare_plugin`,
which is Python and grpc.aio and nothing else. Where it was measured in turn with the agent, a
ratio to a peer is what the agent is times the bare plugin here, times what the bare plugin was
times the peer there; elsewhere it is of the two figures, and says the order of magnitude alone.
"""

import asyncio
import os
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from kata_gpu.publish.kubelet import sockets
from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb
from tests import memory
from tests.api_server import TOKEN, api_server
from tests.kubelet.device_manager import DeviceManager, kubelet

RESOURCE: Final = "nvidia.com/pgpu"
KUBELET: Final = "kubelet"  # short: a socket's path is
OTHER: Final = "other"
NODES: Final = "dev/vfio"
_GPUS: Final = 8
_STARTS: Final = {150: 5, 600: 3, 4096: 3}
_CALLS: Final = 1000
_FLAPS: Final = 40
_RESTARTS: Final = 20
_IDLE_S: Final = 12.0
_AGENT: Final = (sys.executable, "-c", "from kata_gpu.cli import main; main()", "run", "--root")
_AS_IN_A_POD: Final = """\
from kata_gpu.publish.kubernetes import library
library.service_account.__kwdefaults__["folder"] = {folder!r}
from kata_gpu.cli import main
main()
"""
_TLS: Final = Path(__file__).parent.parent / "tls"
_BARE: Final = (sys.executable, "-m", "tests.bench.bare_plugin")

_PEERS: Final = ("kubevirt", "sandbox", "bare Python")
"""Device plugins whose figures, in ms and medians, are those of another machine."""

_THEIRS: Final[dict[str, tuple[float | None, ...]]] = {
    "start to registered, 150 functions": (12, 435, 72),
    "CPU until registered, 150 functions": (14, 429, 82),
    "CPU until registered, 600 functions": (37, 7000, 97),
    "CPU until registered, 4096 functions": (147, 57700, 137),
    "Allocate 1 GPU p50": (0.112, 0.101, 0.272),
    "Allocate 1 GPU p99": (0.339, 0.294, 0.571),
    "Allocate 8 GPUs p50": (0.240, 0.104, 0.386),
    "Allocate 8 GPUs p99": (0.593, 0.317, 0.540),
    "node gone to Unhealthy": (0.33, 0.36, 0.44),
    "node back to Healthy": (None, None, 0.52),  # which the two never find out
    "kubelet back to registered": (2, 2, 9),  # but 16 and 9 of 35 of the first two took 1 s
    "with an API server: resident memory, MiB": (14, 37, 36),
    "resident memory, MiB": (14, 37, 36),  # up to 53 of the second
    "idle CPU a minute": (0.07, 0.16, 18),
}


@dataclass(frozen=True, slots=True)
class _Child:
    process: asyncio.subprocess.Process
    started_s: float


def main() -> None:
    """Print each figure, and what it is times each peer's."""
    print(f"{'':37} {'ours':>13} {'bare':>8} {' '.join(f'{peer:>16}' for peer in _PEERS)}")
    for size, rounds in _STARTS.items():
        with tempfile.TemporaryDirectory(prefix="kata-gpu-bench-", dir=memory.folder()) as folder:
            build(Path(folder), size)
            asyncio.run(_starts(Path(folder), size, rounds))
            if size == min(_STARTS):
                asyncio.run(_services(Path(folder)))
                asyncio.run(_whole(Path(folder)))


def _tell(
    what: str, value: float, *, bare: float | None = None, note: str = "", unit: str = "ms"
) -> None:
    """Print a figure and its ratios; *bare* is what the bare plugin has here."""
    theirs = _THEIRS.get(what, (None,) * len(_PEERS))
    scale = 1.0 if bare is None else (theirs[-1] or bare) / bare
    ratios = [f"{value * scale / ms:.2f} of {ms:g}" if ms else "" for ms in theirs]
    here = "" if bare is None else f"{bare:8.2f}"
    print(
        f"{what:37} {value:8.2f} {unit:4} {here:8} {' '.join(f'{r:>16}' for r in ratios)}  {note}"
    )


# What is measured


async def _starts(root: Path, size: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        for name, argv in (("bare", _bare(root)), ("ours", (*_AGENT, str(root)))):
            async with kubelet(root / KUBELET) as manager, _plugin(argv) as child:
                await _registered(manager, 0)
                registered_ms = (time.perf_counter() - child.started_s) * 1000
                cpu_ms = _cpu_ms(child.process.pid)
                await _offered(manager, _GPUS)
                listed_ms = (time.perf_counter() - child.started_s) * 1000
                found[name].append((registered_ms, cpu_ms, listed_ms))
    names = (
        f"start to registered, {size} functions",
        f"CPU until registered, {size} functions",
        f"start to first list, {size} functions",
    )
    for name, ours, bare in zip(
        names, zip(*found["ours"], strict=True), zip(*found["bare"], strict=True), strict=True
    ):
        _tell(name, statistics.median(ours), bare=statistics.median(bare))


async def _services(root: Path) -> None:
    async with kubelet(root / KUBELET) as manager, _plugin((*_AGENT, str(root))) as child:
        await _offered(manager, _GPUS)
        async with kubelet(root / OTHER) as other, _plugin(_bare(root, OTHER)):
            await _offered(other, _GPUS)
            await _allocations(manager, other)
        await _flaps(manager, root)
        await _restarts(manager)
        await _idle(child.process.pid)


async def _allocations(manager: DeviceManager, bare: DeviceManager) -> None:
    """Call both plugins in turn, from one client process."""
    clients = [sockets.Client(m.directory / (m.endpoint(RESOURCE) or "")) for m in (manager, bare)]
    times: dict[int, tuple[list[float], list[float]]] = {1: ([], []), _GPUS: ([], [])}
    for number in range(_CALLS):
        for count, taken in times.items():
            pairs = list(zip((manager, bare), clients, taken, strict=True))
            for who, client, into in pairs if number % 2 else reversed(pairs):
                ids = sorted(who.lists[RESOURCE][-1])[:count]
                wish = pb.ContainerAllocateRequest(devices_ids=ids)
                request = pb.AllocateRequest(container_requests=[wish])
                started = time.perf_counter()
                await client.ask(pb, "DevicePlugin.Allocate", request, timeout_s=10)
                into.append((time.perf_counter() - started) * 1000)
    for client in clients:
        await client.close()
    for count, (ours, theirs) in times.items():
        what = f"Allocate {count} GPU{'s' if count > 1 else ''}"
        _tell(f"{what} p50", statistics.median(ours), bare=statistics.median(theirs))
        _tell(f"{what} p99", _p99(ours), bare=_p99(theirs))


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def _whole(root: Path) -> None:
    """Start the agent as in a pod: every GPU through DRA, and a cluster to write to."""
    _configure(root, offer='offer = "dra"', kubernetes="start_spread_s = 0")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(_TLS / "server.crt", _TLS / "server.key")
    account = root / "account"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "ca.crt").write_text((_TLS / "ca.crt").read_text())
    start = _AS_IN_A_POD.format(folder=str(account))
    first = []
    for _ in range(_STARTS[min(_STARTS)]):
        with api_server(tls=server) as api:
            api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
            url = urlsplit(api.url)
            os.environ["KUBERNETES_SERVICE_HOST"] = str(url.hostname)
            os.environ["KUBERNETES_SERVICE_PORT"] = str(url.port)
            argv = (sys.executable, "-c", start, "run", "--root", str(root))
            async with kubelet(root / KUBELET), _plugin(argv) as child:
                while not api.objects("ResourceSlice"):
                    await asyncio.sleep(0.001)
                first.append((time.perf_counter() - child.started_s) * 1000)
                await _idle(child.process.pid, "with an API server: ")
    _tell("start to first ResourceSlice", statistics.median(first))


async def _flaps(manager: DeviceManager, root: Path) -> None:
    node = root / NODES / "1"
    target = node.readlink()
    gone, back = [], []
    for _ in range(_FLAPS):
        gone.append(await _taken(manager, node.unlink, _GPUS - 1))
        back.append(await _taken(manager, lambda: node.symlink_to(target), _GPUS))
    _tell("node gone to Unhealthy", statistics.median(gone), note=f"at most {max(gone):.1f}")
    _tell("node back to Healthy", statistics.median(back), note=f"at most {max(back):.1f}")


async def _taken(manager: DeviceManager, change: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    change()
    await _offered(manager, count)
    return (time.perf_counter() - started) * 1000


async def _restarts(manager: DeviceManager) -> None:
    taken = []
    for _ in range(_RESTARTS):
        await manager.stop()
        await asyncio.sleep(0.05)
        before = len(manager.registrations)
        await manager.start()
        started = time.perf_counter()
        await _registered(manager, before)
        taken.append((time.perf_counter() - started) * 1000)
        await _offered(manager, _GPUS)
    slow = sum(ms > 500 for ms in taken)
    note = f"{slow} of {_RESTARTS} took more than 0.5 s"
    _tell("kubelet back to registered", statistics.median(taken), note=note)


async def _idle(pid: int, where: str = "") -> None:
    await asyncio.sleep(1.0)
    before = _cpu_ms(pid)
    await asyncio.sleep(_IDLE_S)
    _tell(f"{where}idle CPU a minute", (_cpu_ms(pid) - before) * 60 / _IDLE_S)
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    _tell(f"{where}resident memory, MiB", int(fields["VmRSS"].split()[0]) / 1024, unit="MiB")
    _tell(f"{where}threads", int(fields["Threads"]), unit="")


def _cpu_ms(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


async def _registered(manager: DeviceManager, before: int) -> None:
    await manager.until(lambda: len(manager.registrations) > before)


async def _offered(manager: DeviceManager, count: int) -> None:
    await manager.until(
        lambda: manager.is_running(RESOURCE) and manager.allocatable(RESOURCE) == count
    )


def _bare(root: Path, directory: str = KUBELET) -> tuple[str, ...]:
    return (*_BARE, str(root), str(root / directory), RESOURCE)


@asynccontextmanager
async def _plugin(argv: tuple[str, ...]) -> AsyncIterator[_Child]:
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield _Child(process, started)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


# The node


def build(root: Path, size: int) -> None:
    """Make a node of *size* functions: eight GPUs on vfio-pci, each below a port; NICs else."""
    devices, nodes = root / "sys/bus/pci/devices", root / NODES
    for folder in (devices, nodes, root / "proc/sys/kernel", root / KUBELET):
        folder.mkdir(parents=True)
    for name in ("bus/pci/drivers/vfio-pci", "bus/pci/drivers/mlx5_core", "class/iommu/dmar0"):
        (root / "sys" / name).mkdir(parents=True)
    drivers = root / "sys/module/vfio_pci/drivers"
    drivers.mkdir(parents=True)
    (drivers / "pci:vfio-pci").symlink_to(root / "sys/bus/pci/drivers/vfio-pci")
    (root / "proc/sys/kernel/osrelease").write_text("6.12.0\n")
    for number in range(_GPUS):
        bridge = f"devices/pci0000:{number:02x}/0000:{number:02x}:01.0"
        _function(root / "sys", bridge, group=100 + number, class_code="0x060400")
        gpu = f"{bridge}/0000:{number + 0x40:02x}:00.0"
        _function(root / "sys", gpu, group=number, class_code="0x030200", driver="vfio-pci")
        (nodes / str(number)).symlink_to("/dev/full")  # which nobody opens
    for number in range(size - 2 * _GPUS):
        domain, slot = divmod(number, 8192)
        bus = f"{domain + 1:04x}:{slot // 32:02x}"
        nic = f"devices/pci{bus}/{bus}:{slot % 32:02x}.0"
        _function(root / "sys", nic, group=200 + number, class_code="0x020000", driver="mlx5_core")
    _configure(root)


def _configure(root: Path, *, offer: str = "", kubernetes: str = "api = false") -> None:
    """Have the agent adopt the GPUs: nothing has to be bound, which sysfs alone could do."""
    gpus = ", ".join(f'{{ address = "0000:{n + 0x40:02x}:00.0" }}' for n in range(_GPUS))
    for path, text in {
        "etc/kata-gpu/blueprint.toml": f'schema = 1\nversion = "bench"\n[[pool]]\nname = "gpus"\n'
        f'mode = "passthrough"\nresource = "{RESOURCE}"\nselect = [{gpus}]\n{offer}\n',
        "etc/kata-gpu/agent.toml": f'[kubernetes]\nnode_name = "node-1"\n{kubernetes}\n'
        f'kubelet_directory = "/{KUBELET}"\n',
        "proc/sys/kernel/random/boot_id": "01234567-89ab-4def-8123-456789abcdef\n",
    }.items():
        at = root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)


def _function(sys_: Path, at: str, *, group: int, class_code: str, driver: str = "") -> None:
    folder = sys_ / at
    folder.mkdir(parents=True)
    texts = {"vendor": "0x10de", "device": "0x2330", "class": class_code}
    if class_code != "0x020000":
        texts |= {
            "subsystem_vendor": "0x10de",
            "subsystem_device": "0x16c1",
            "revision": "0xa1",
            "driver_override": "vfio-pci",
            "numa_node": "0",
            "resource": "\n".join(13 * [" ".join(3 * ["0x0000000000000000"])]),
            "reset_method": "flr bus",
            "power_state": "D0",
        }
        (folder / "config").write_bytes(bytes(4096))
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    if driver:
        (folder / "driver").symlink_to(sys_ / "bus/pci/drivers" / driver)
    members = sys_ / f"kernel/iommu_groups/{group}/devices"
    members.mkdir(parents=True)
    (members / folder.name).symlink_to(folder)
    (folder / "iommu_group").symlink_to(members.parent)
    link = sys_ / "bus/pci/devices" / folder.name
    link.symlink_to(os.path.relpath(folder, link.parent))
