"""What may hang is done by children: the agent waits for a while, and knows them again later.

A FIFO that nobody serves stands for an attribute that does not answer.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import EndingError, HostError, StuckError
from kata_gpu.host import leftovers
from kata_gpu.host.children import Children
from kata_gpu.host.sysfs import Sysfs

PROC: Final = Path("/proc")
PATIENCE_S: Final = 0.5
UNBIND: Final = f"unbind-{os.getpid()}"  # for leftovers of tests beside this one are found too

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the suite has threads


@pytest.fixture(params=["by itself", "by its forker"])
def has_forker(request: pytest.FixtureRequest, tmp_path: Path) -> bool:
    (tmp_path / "vendor").write_text("0x10de\n")
    return bool(request.param == "by its forker")


@contextmanager
def running(root: Path, timeout_s: float, *, has_forker: bool) -> Iterator[Children]:
    found = Children(root=root, timeout_s=timeout_s)
    if has_forker:
        found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def agent(tmp_path: Path, has_forker: bool) -> Iterator[Children]:
    with running(tmp_path, 30, has_forker=has_forker) as found:
        yield found


@pytest.fixture
def hasty(tmp_path: Path, has_forker: bool) -> Iterator[Children]:
    with running(tmp_path, PATIENCE_S, has_forker=has_forker) as found:
        yield found


@contextmanager
def hanging(*attributes: Path) -> Iterator[None]:
    """Let attributes hang until the end of the block, and every child be gone after it."""
    for attribute in attributes:
        os.mkfifo(attribute)
    names = {attribute.name for attribute in attributes}
    try:
        yield
    finally:
        for operation in leftovers.find(PROC):
            if operation.attribute in names:
                os.kill(operation.pid, signal.SIGKILL)  # which one that waits for a FIFO obeys


def test_a_store_is_one_write_of_the_value(agent: Children, tmp_path: Path) -> None:
    agent.write("vendor", b"0x1002")
    assert (tmp_path / "vendor").read_text() == "0x1002\n"


def test_a_value_may_hold_any_byte(agent: Children, tmp_path: Path) -> None:
    agent.write("vendor", b"\0=\n")
    assert (tmp_path / "vendor").read_bytes() == b"\0=\n0de\n"


def test_a_refused_store_carries_the_errno(agent: Children) -> None:
    with pytest.raises(HostError, match="nowhere: No such file") as refusal:
        agent.write("nowhere", b"1")
    assert isinstance(refusal.value.__cause__, FileNotFoundError)


def test_a_link_is_not_followed_to_another_file(agent: Children, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("vendor")
    with pytest.raises(HostError, match="symbolic links"):
        agent.write("link", b"1")


def test_every_attribute_has_its_text_or_its_error(agent: Children, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    answers = agent.read(["vendor", "nowhere", "empty"])
    assert (answers["vendor"], answers["empty"]) == ("0x10de", "")
    assert isinstance(answers["nowhere"], HostError)


def test_the_first_register_of_a_device_is_one_number(agent: Children, tmp_path: Path) -> None:
    (tmp_path / "resource0").write_bytes(bytes.fromhex("a100001800000000"))
    assert agent.peek("resource0") == "0x180000a1"


@pytest.mark.parametrize("offset", [4, 0xFFC, 0x1000, 0x1182CC])
def test_a_register_is_read_where_it_is(agent: Children, tmp_path: Path, offset: int) -> None:
    memory = tmp_path / "resource0"
    memory.touch()
    os.truncate(memory, 2 << 20)
    with memory.open("r+b") as opened:
        opened.seek(offset)
        opened.write(bytes.fromhex("03000100"))
    assert agent.peek("resource0", offset) == "0x00010003"
    assert agent.peek("resource0") == "0x00000000"
    assert Sysfs(tmp_path).peek("resource0", offset) == "0x00010003"


@pytest.mark.parametrize("offset", [-4, 2, 1 << 32])
def test_where_no_register_can_be_is_the_callers_mistake(
    agent: Children, tmp_path: Path, offset: int
) -> None:
    with pytest.raises(ValueError, match="no register is at offset"):
        agent.peek("resource0", offset)
    with pytest.raises(ValueError, match="no register is at offset"):
        Sysfs(tmp_path).peek("resource0", offset)


def test_a_bar_that_ends_before_the_register_is_an_error(agent: Children, tmp_path: Path) -> None:
    (tmp_path / "resource0").write_bytes(bytes(4096))
    with pytest.raises(HostError, match=r"cannot read .*/resource0: Invalid argument"):
        agent.peek("resource0", 0x1000)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda file: file.touch(), "Invalid argument"),
        (lambda file: None, "No such file"),
        (lambda file: file.symlink_to("vendor"), ".*symbolic links"),
    ],
    ids=["empty", "missing", "link"],
)
def test_memory_that_cannot_be_mapped_is_an_error(
    agent: Children, tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    make(tmp_path / "resource0")
    with pytest.raises(HostError, match=f"cannot read .*/resource0: {why}"):
        agent.peek("resource0")


def test_thousands_of_attributes_are_read_too(agent: Children, tmp_path: Path) -> None:
    names = [f"attribute-{number:05}-{'x' * 60}" for number in range(2000)]
    for name in names:
        (tmp_path / name).write_text(name)
    assert agent.read(names) == {name: name for name in names}


def test_a_store_that_hangs_is_left_to_its_child(hasty: Children, tmp_path: Path) -> None:
    with hanging(tmp_path / UNBIND):
        started = time.monotonic()
        with pytest.raises(StuckError, match=r"cannot wait longer than 0.5 s for unbind-") as left:
            hasty.write(UNBIND, b"0000:01:00.0")
        assert PATIENCE_S <= time.monotonic() - started < 10 * PATIENCE_S
        (operation,) = [op for op in leftovers.find(PROC) if op.pid == left.value.pid]
        assert (operation.attribute, operation.value) == (UNBIND, "0000:01:00.0")
        assert str(operation.address) == "0000:01:00.0"
        assert 0 < operation.age_s < 10
        assert operation.wait_channel


def test_a_newline_that_hangs_is_known_again_too(hasty: Children, tmp_path: Path) -> None:
    with hanging(tmp_path / UNBIND):
        with pytest.raises(StuckError) as left:
            hasty.write(UNBIND, b"\n")
        assert [o.value for o in leftovers.find(PROC) if o.pid == left.value.pid] == [r"\n"]


def test_an_attribute_that_hangs_spoils_no_other(hasty: Children, tmp_path: Path) -> None:
    with hanging(*(tmp_path / name for name in (UNBIND, f"{UNBIND}-too"))):
        answers = hasty.read(["vendor", UNBIND, f"{UNBIND}-too", "vendor"])
        assert answers.pop("vendor") == "0x10de"
        assert [type(answer) for answer in answers.values()] == [StuckError] * 2
        waiting = {op.attribute for op in leftovers.find(PROC)}
        assert answers.keys() <= waiting


def test_a_child_that_is_killed_is_told_from_one_that_hangs(
    agent: Children, tmp_path: Path
) -> None:
    with hanging(tmp_path / UNBIND), ExitStack() as stack:
        killer = subprocess.Popen(
            [sys.executable, "-c", _KILLER, UNBIND],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(killer.wait)
        with pytest.raises(HostError, match=r"was killed while it did this; see the kernel's log"):
            agent.write(UNBIND, b"0000:01:00.0")


_KILLER: Final = """
import os, signal, sys, time
from pathlib import Path
from kata_gpu.host import leftovers
while not (found := [o for o in leftovers.find(Path("/proc")) if o.attribute == sys.argv[1]]):
    time.sleep(0.01)
os.kill(found[0].pid, signal.SIGKILL)
"""


def test_a_child_has_no_descriptor_of_the_agents(hasty: Children, tmp_path: Path) -> None:
    with (tmp_path / "vendor").open() as ours, hanging(tmp_path / UNBIND):
        os.set_inheritable(ours.fileno(), True)
        with pytest.raises(StuckError) as left:
            hasty.write(UNBIND, b"1")
        held = (PROC / str(left.value.pid) / "fd").iterdir()
        kinds = {str(link.readlink()).partition(":")[0] for link in held}
        assert kinds == {"/dev/null", "pipe", "/memfd"}


def test_the_agent_can_end_while_a_child_hangs_and_the_next_one_knows_it(tmp_path: Path) -> None:
    with hanging(tmp_path / UNBIND):
        ended = subprocess.run(
            [sys.executable, "-c", _AGENT, str(tmp_path), UNBIND],
            timeout=20,
            capture_output=True,
            check=True,
        )
        pid = int(ended.stdout)
        assert [op.value for op in leftovers.find(PROC) if op.pid == pid] == ["0000:01:00.0"]


_AGENT: Final = """
import sys
from pathlib import Path
from kata_gpu.errors import StuckError
from kata_gpu.host.children import Children
agent = Children(root=Path(sys.argv[1]), timeout_s=1)
agent.start()
try:
    agent.write(sys.argv[2], b"0000:01:00.0")
except StuckError as error:
    print(error.pid)
"""


def test_the_forker_ends_with_the_agent() -> None:
    script = (
        "from pathlib import Path; from kata_gpu.host.children import Children\n"
        "print(Children(root=Path('/'), timeout_s=1).start())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    deadline = time.monotonic() + 5
    while _is_running(PROC / str(int(done.stdout))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_running(process: Path) -> bool:
    try:
        return " Z " not in (process / "stat").read_text()
    except OSError:
        return False


def test_an_agent_that_ends_waits_for_nothing_and_begins_nothing(tmp_path: Path) -> None:
    with running(tmp_path, 30, has_forker=True) as agent, hanging(tmp_path / UNBIND):
        threading.Timer(0.2, agent.give_up).start()
        with pytest.raises(StuckError, match="the agent ends") as left:
            agent.write(UNBIND, b"0000:01:00.0")
        assert left.value.pid in {operation.pid for operation in leftovers.find(PROC)}
        with pytest.raises(EndingError, match="the agent ends"):
            agent.write("vendor", b"1")
        with pytest.raises(EndingError, match="the agent ends"):
            agent.read(["vendor"])


def test_an_agent_may_end_at_any_moment_of_an_answer(tmp_path: Path) -> None:
    (tmp_path / "vendor").write_text("0x10de\n")
    seen = set()
    for delay_us in (*range(0, 4000, 20), 30_000_000):
        with running(tmp_path, 30, has_forker=True) as agent:
            ending = threading.Timer(delay_us / 1e6, agent.give_up)
            ending.start()
            try:
                seen.add(agent.read(["vendor"])["vendor"])
            except EndingError:
                seen.add("the agent ends")
            ending.cancel()
            ending.join()
    assert seen == {"0x10de", "the agent ends"}


def test_without_its_forker_nothing_is_done_and_the_reason_is_said(tmp_path: Path) -> None:
    agent = Children(root=tmp_path, timeout_s=1)
    forker = agent.start()
    os.kill(forker, signal.SIGKILL)
    os.waitpid(forker, 0)
    with pytest.raises(HostError, match="the process that starts children is gone"):
        agent.write("vendor", b"1")
    agent.stop()


def test_a_process_that_only_bears_the_name_is_no_child_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "4242"
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text("kata-gpu-store\n")
    (folder / "fd/3").symlink_to("/memfd:something (deleted)")
    assert leftovers.find(tmp_path) == ()
    (folder / "fd/4").symlink_to("/memfd:kata-gpu:bus/pci/rescan=1 (deleted)")
    (operation,) = leftovers.find(tmp_path)
    assert (operation.attribute, operation.value, operation.address) == (
        "bus/pci/rescan",
        "1",
        None,
    )
    os.chown(folder, 65534, 65534)
    assert leftovers.find(tmp_path) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes PID namespaces")
def test_a_process_of_a_container_is_no_child_of_ours() -> None:
    code = (
        "import os; open('/proc/self/comm', 'w').write('kata-gpu-store')\n"
        "made = os.memfd_create('kata-gpu:bus/pci/devices/0000:41:00.0/driver/unbind=x')\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert [op for op in leftovers.find(PROC) if op.value == "x"] == []
        process.communicate(b"\n")


NO_MORE: Final = """
import ctypes, os, resource, sys
from pathlib import Path
from kata_gpu.host.children import Children
from kata_gpu.host.forker import Forker
"imported".encode("unicode_escape")  # by who may read it
for set_id in (os.setresgid, os.setresuid):  # whom the limit counts for
    set_id(54321, 54321, 54321)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: its files in /proc are its own
agent = Children(root=Path(sys.argv[1]), timeout_s=30)
process = agent.start() if sys.argv[2] == "True" else 0
resource.prlimit(process, resource.RLIMIT_NPROC, (0, 4096))
print(*(str(answer) for answer in agent.read(["vendor", "device"]).values()), sep="\\n")
resource.prlimit(process, resource.RLIMIT_NPROC, (4096, 4096))
print(*agent.read(["vendor"]).values())
agent.stop()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_where_there_can_be_no_process_that_is_the_answer_and_the_next_is_started(
    tmp_path: Path, has_forker: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "vendor").write_text("0x10de\n")
        argv = [sys.executable, "-c", NO_MORE, folder, str(has_forker)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    *refused, last = done.stdout.splitlines()
    assert [text.rpartition(": ")[2] for text in refused] == [
        "Resource temporarily unavailable"
    ] * 2
    assert last == "0x10de"
    assert (done.returncode, done.stderr) == (0, "")
