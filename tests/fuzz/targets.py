"""What reads bytes that others wrote, each as a function of bytes that the fuzzer invents.

A target raises nothing: an error that the code declares is an answer, and its text is checked
(`_told`); any other exception is a finding. It works in the empty folder it is given, and leaves
what it likes there. A new target is a function, its line in `TARGETS`, and a folder of the
corpus with one input.
"""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.cli import explain_pod, output
from kata_gpu.cli.simulate import text as simulation_text
from kata_gpu.discover import cdi as discovered_cdi
from kata_gpu.discover import functions, pods
from kata_gpu.errors import HostError, InvalidBlueprint, KataGpuError, LedgerError
from kata_gpu.host import Host, leftovers, modules
from kata_gpu.host.pci_ids import PciIds
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.host.uevents import Uevents
from kata_gpu.model import vfio
from kata_gpu.model.explanation import Unsaid, lines
from kata_gpu.model.ledger import SCHEMA, Ledger
from kata_gpu.observe import client, said
from kata_gpu.observe.document import document
from kata_gpu.plan import cdi, review
from kata_gpu.plan import pods as plan_pods
from kata_gpu.plan.simulate.simulation import simulate
from kata_gpu.settings import agent_file, blueprint, manifests
from kata_gpu.settings.agent import Settings
from kata_gpu.settings.manifests import documents, snapshot
from tests.fuzz import conversation, ledgers

Target = Callable[[bytes, Path], None]

FIELD: Final = b"\n--\n"
"""What parts an input with several fields, so that a person can read and write one."""

_ADDRESS: Final = "0000:01:00.0"
_UID: Final = "0f6a2a3e-7b1c-4d2e-9f00-aabbccddeeff"
_NAME_MAX_BYTES: Final = 255  # of anything that a folder lists
_MODULE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MESSAGE_MAX: Final = 4096  # of a line that an admin reads in a journal


def _told(error: KataGpuError) -> None:
    """Check that an error is one line that says what cannot be, and no terminal's commands."""
    message = str(error)
    assert message.startswith("cannot "), message
    assert message.isprintable(), ascii(message)
    assert len(message) <= _MESSAGE_MAX, f"{len(message)} characters: {message[:200]}"


def sysfs(data: bytes, folder: Path) -> None:
    """One function's directory whose files, links and position hold the fields."""
    told = dict(zip(_SYSFS_FIELDS, data.split(FIELD), strict=False))
    name = os.fsdecode(told.pop("name", b"")[:_NAME_MAX_BYTES]) or _ADDRESS
    tree = Sysfs(folder)
    with _function(folder, told), suppress(functions.UnreadableFunctionError):
        try:
            where = functions.place(tree, name)
            path = functions.override_path(where.identity.address)
            override = tree.locked([path])[path]
            found = functions.details(tree, where, PciIds(told.get("pci.ids", b"")), override)
        except functions.UnreadableFunctionError as error:
            _told(error)
            raise
        shown = document(found)
        assert json.loads(json.dumps(shown).encode()) == shown


_SYSFS_LINKS: Final = ("iommu_group", "driver", "physfn")
_SYSFS_FIELDS: Final = (
    "name",
    "position",
    "pci.ids",
    *_SYSFS_LINKS,
    "vendor",
    "device",
    "class",
    "subsystem_vendor",
    "subsystem_device",
    "revision",
    "driver_override",
    "numa_node",
    "resource",
    "current_link_speed",
    "current_link_width",
    "max_link_speed",
    "max_link_width",
    "reset_method",
    "power_state",
    "boot_vga",
    "sriov_totalvfs",
    "sriov_numvfs",
    "config",
)


@contextmanager
def _function(root: Path, told: dict[str, bytes]) -> Iterator[None]:
    """Make the directory of a function below *root* for as long as the block lasts."""
    position = _usable(root, told.pop("position", b""))
    directory = root / position / _ADDRESS
    directory.mkdir(parents=True)
    link = root / functions.DEVICES / _ADDRESS
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../../{position}/{_ADDRESS}")
    try:
        for name, content in told.items():
            if name not in _SYSFS_LINKS:
                (directory / name).write_bytes(content)
            elif content and b"\0" not in content:
                with suppress(OSError):  # longer than any link can be
                    (directory / name).symlink_to(os.fsdecode(b"../../x/" + content))
        yield
    finally:
        link.unlink()
        for path in sorted(directory.iterdir()):
            path.unlink()
        while directory != root:
            directory.rmdir()
            directory = directory.parent


def _usable(root: Path, position: bytes) -> str:
    """Return *position* as a path below ``devices``; the usual one when no folder can be there."""
    parts = [part for part in os.fsdecode(position).split("/") if part not in {"", ".", ".."}]
    path = "/".join(("devices", *(parts or ("pci0000:00", "0000:00:01.0"))))
    try:
        (root / path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return "devices/pci0000:00"
    return path


def blueprints(data: bytes, folder: Path) -> None:
    """A blueprint's file."""
    path = folder / "blueprint.toml"
    path.write_bytes(data)
    try:
        wanted = blueprint.load(path)
    except InvalidBlueprint as error:
        _told(error)
    else:
        (folder / "proc").mkdir(exist_ok=True)
        _, plan = node.make_plan(Host.at(folder), Settings(), wanted, Ledger())
        assert review.text(plan).encode()


def settings(data: bytes, folder: Path) -> None:
    """The file of the agent's own settings."""
    path = folder / "agent.toml"
    path.write_bytes(data)
    try:
        found = agent_file.load(path)
    except InvalidBlueprint as error:
        _told(error)
    else:
        assert 1 <= found.rescan_interval_s <= 60
        assert os.fsencode(found.socket)


def ledger(data: bytes, folder: Path) -> None:
    """A ledger's file as it is, and then as a body with the checksum that makes it trusted."""
    path = folder / "ledger.json"
    for content in (data, ledgers.with_its_checksum(data, SCHEMA)):
        path.write_bytes(content)
        try:
            journal = Journal(path)
            (folder / "proc").mkdir(exist_ok=True)
            plan = node.make_release(Host.at(folder), Settings(), journal.ledger, None)
            assert review.text(plan).encode()
            ledgers.use(journal, folder)
        except (LedgerError, HostError) as error:
            _told(error)


def cdi_spec(data: bytes, folder: Path) -> None:
    """A CDI spec that somebody else may have written over ours."""
    path = folder / "spec.json"
    path.write_bytes(data)
    try:
        content = data.decode()
    except UnicodeDecodeError:
        return  # files.read refuses it
    nodes = cdi.published(content, _ADDRESS)
    assert all(isinstance(found, str) for found in nodes), nodes
    left = cdi.without(content, {_ADDRESS})
    if left is not None:
        assert left.encode()
        assert cdi.published(left, _ADDRESS) == ()


def cdi_file(data: bytes, folder: Path) -> None:
    """Anybody's CDI file, of either name, beside a second one that says the same."""
    for name in ("a.json", "a.yaml"):
        paths = [folder / directory / name for directory in ("etc/cdi", "var/run/cdi")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        found = discovered_cdi.read(Host.at(folder), "/var/run/cdi")
        assert len(found.files) == 2
        for fault in cdi.judge(found):
            assert str(fault).encode()
            assert len(fault.reason) <= _MESSAGE_MAX, fault
            assert fault.scopes or fault.rule == "json-form", fault
        for device in cdi.devices(found):
            assert not (device.go and device.rust), device
        for path in paths:
            path.unlink()


def pod(data: bytes, folder: Path) -> None:
    """Kubelet's checkpoint and the journal, for who explains a pod."""
    checkpoint, _, journal = data.partition(FIELD)
    path = folder / pods.KUBELET.removeprefix("/") / pods.CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint)
    (folder / f"var/log/pods/ml_x_{_UID}").mkdir(parents=True, exist_ok=True)

    def run(argv: Sequence[str], *, timeout_s: float) -> str:
        assert argv
        assert timeout_s
        return journal.decode("utf-8", "replace")

    host = replace(Host.at(folder), run=run)
    facts = explain_pod.look(host, Settings(), "ml", "x", (), Unsaid(reason="none"))
    found = plan_pods.explain(facts)
    assert found.uid == _UID
    shown = output.printable(document(found))
    assert all(line.isprintable() for line in map(output.printable, lines(found)))
    assert json.dumps(shown)


def uevent(data: bytes, _folder: Path) -> None:
    """Events as pyudev gives them: with an action or without, and text if it is UTF-8."""
    hints = Uevents(_Monitor(data.split(FIELD))).drain()
    assert hints
    assert all(hint.text.isprintable() for hint in hints), hints


class _Monitor:
    """What `Uevents` asks of a monitor, over events that are there already."""

    def __init__(self, events: list[bytes]) -> None:
        self._events = events

    def poll(self, timeout: float) -> "_Device | None":
        assert timeout == 0
        return _Device(self._events.pop(0)) if self._events else None


class _Device:
    def __init__(self, event: bytes) -> None:
        self._action, _, self._path = event.partition(b" ")

    @property
    def action(self) -> str | None:
        return self._action.decode() or None

    @property
    def device_path(self) -> str:
        return self._path.decode()


def modules_alias(data: bytes, folder: Path) -> None:
    """The aliases of a kernel's modules, and the choice that is made by them."""
    path = folder / "lib/modules/6.1.0/modules.alias"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        aliases = modules.vfio_aliases(folder, "6.1.0")
    except HostError as error:
        _told(error)
        return
    chosen = vfio.best_module(aliases, (0x10DE, 0x2342, 0x10DE, 0x16EB, 3, 2, 0))
    assert _MODULE.fullmatch(chosen), chosen


def processes(data: bytes, folder: Path) -> None:
    """What a process chooses to be called and to have open, for who looks for our children."""
    command, _, label = data.partition(FIELD)
    process = folder / "proc/4242"
    (process / "fd").mkdir(parents=True, exist_ok=True)
    (process / "comm").write_bytes(command)
    link = process / "fd/3"
    link.unlink(missing_ok=True)
    with suppress(ValueError, OSError):  # no link holds that
        link.symlink_to("/memfd:kata-gpu:" + os.fsdecode(label))
    for operation in leftovers.find(folder / "proc"):
        assert operation.pid == 4242
        assert str(operation).isprintable(), operation
        assert operation.address is None or str(operation.address) in os.fsdecode(data)


def manifests_file(data: bytes, folder: Path) -> None:
    """Kubernetes objects and inventories of nodes that a person lets be simulated."""
    path = folder / "objects.yaml"
    path.write_bytes(data)
    try:
        given = documents.read(path)
        snapshots = [(found, "n1") for found in given if snapshot.is_snapshot(found)]
        objects = [found for found in given if not snapshot.is_snapshot(found)]
        found = manifests.scenario(objects, snapshots)
    except InvalidBlueprint as error:
        _told(error)
        return
    if b"expression" in data:  # CEL is another library's, and bounded for a process
        return
    for line in simulation_text(simulate(found), is_wide=False):
        assert output.printable(line.replace("\n", "")) == line.replace("\n", ""), ascii(line)


def status_server(data: bytes, folder: Path) -> None:
    """What a client sends to the status socket before it ends its side."""
    for reply in conversation.replies(data, folder / "status.sock"):
        if reply:
            conversation.check(data, reply)


def status_client(data: bytes, folder: Path) -> None:
    """What somebody behind the socket's path answers."""
    path = folder / "status.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            channel, _ = listener.accept()
            with channel, suppress(OSError):  # it may hear no more
                channel.recv(65536)
                channel.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            answer_read = client.get(path, "/v1/status", timeout_s=5)
            assert json.dumps(answer_read)
            said.parse(answer_read)
        except HostError as error:
            _told(error)
        finally:
            thread.join()
            path.unlink()


TARGETS: Final[dict[str, Target]] = {
    "blueprint": blueprints,
    "cdi": cdi_spec,
    "cdi-file": cdi_file,
    "ledger": ledger,
    "manifests": manifests_file,
    "modules-alias": modules_alias,
    "pod": pod,
    "processes": processes,
    "settings": settings,
    "status-client": status_client,
    "status-server": status_server,
    "sysfs": sysfs,
    "uevent": uevent,
}
