"""Users of a device are found by its number, whatever name they opened, if they closed it too."""

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import procfs
from kata_gpu.host.procfs import Use
from kata_gpu.model.holder import How
from kata_gpu.model.pci import PciAddress

PROC = Path("/proc")
FULL = Path("/dev/full")  # a character device that nobody has open
ZERO = Path("/dev/zero")
GPU = "0000:41:00.0"

MAP_AND_CLOSE = """
import ctypes, os
fd = os.open({path!r}, os.O_RDONLY)
at = ctypes.CDLL(None).mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))
os.close(fd)
"""


def number(path: Path) -> int:
    return path.stat().st_rdev


@contextmanager
def process_that(code: str, path: Path) -> Iterator[int]:
    """Let a real process do something with *path* and wait, and return its pid."""
    code = f"{code.format(path=str(path))}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate(b"\n")


def process_with(path: Path) -> AbstractContextManager[int]:
    return process_that("f = open({path!r})", path)


def use(pid: int, how: How = How.OPEN, *, device: int | PciAddress | None = None) -> Use:
    return Use(pid=pid, device=number(FULL) if device is None else device, how=how)


def proc_with(root: Path, pid: int, *targets: Path | str, maps: str = "") -> Path:
    """Return a procfs in which one process has *targets* open."""
    descriptors = root / str(pid) / "fd"
    descriptors.mkdir(parents=True)
    (root / str(pid) / "maps").write_text(maps)
    for name, target in enumerate(targets, 3):
        (descriptors / str(name)).symlink_to(target)
    return root


def make_node(path: Path, kind: str, like: Path) -> Path:
    """Make a device node with the number of another, where we may."""
    made = subprocess.run(
        ["mknod", path, kind, str(os.major(number(like))), str(os.minor(number(like)))],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("device nodes can be made by root alone")
    return path


def test_a_process_that_has_a_device_open_is_found() -> None:
    with process_with(FULL) as pid:
        assert procfs.uses(PROC, [number(FULL)]) == (use(pid),)


LEAVE_IT_TO_A_THREAD = """
import ctypes, os, threading
file = open({path!r})
def wait():
    print(flush=True)
    input()
    os._exit(0)
threading.Thread(target=wait).start()
ctypes.CDLL(None).syscall(ctypes.c_long(60 if os.uname().machine == "x86_64" else 93), 0)
"""


def test_a_process_whose_first_thread_has_ended_still_has_its_devices() -> None:
    with process_that(LEAVE_IT_TO_A_THREAD, FULL) as pid:
        while "State:\tZ" not in (PROC / f"{pid}/status").read_text(encoding="utf-8"):
            time.sleep(0.001)
        assert procfs.uses(PROC, [number(FULL)]) == (use(pid),)


def test_nobody_is_found_when_it_has_ended() -> None:
    with process_with(FULL):
        assert procfs.uses(PROC, [number(FULL)])
    assert procfs.uses(PROC, [number(FULL)]) == ()


def test_a_device_is_known_by_its_number_not_its_name(tmp_path: Path) -> None:
    with process_with(make_node(tmp_path / "other", "c", FULL)) as pid:
        assert procfs.uses(PROC, [number(FULL)]) == (use(pid),)


def test_a_block_device_of_the_same_number_is_another_device(tmp_path: Path) -> None:
    block = make_node(tmp_path / "block", "b", FULL)
    assert procfs.uses(proc_with(tmp_path / "proc", 7, block), [number(FULL)]) == ()


def test_a_mapping_keeps_a_device_in_use_after_its_descriptor_is_closed() -> None:
    with process_that(MAP_AND_CLOSE, ZERO) as pid:
        found = procfs.uses(PROC, [number(ZERO)])
    assert use(pid, How.MAPPED, device=number(ZERO)) in found


def test_a_device_that_is_open_and_mapped_is_told_once() -> None:
    code = "import mmap; f = open({path!r}, 'r+b'); m = mmap.mmap(f.fileno(), 4096, 2)"
    with process_that(code, ZERO) as pid:
        found = [one for one in procfs.uses(PROC, [number(ZERO)]) if one.pid == pid]
    assert found == [use(pid, device=number(ZERO))]


LINE = "7f0000000000-7f0000001000 rw-s 00000000 00:05 {inode}      {path}\n"


def test_a_mapping_is_followed_through_the_kernel_s_own_link(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, 7, maps=LINE.format(inode=9, path="/some/where"))
    (tmp_path / "7/map_files").mkdir()
    (tmp_path / "7/map_files/7f0000000000-7f0000001000").symlink_to(FULL)
    assert procfs.uses(proc, [number(FULL)]) == (use(7, How.MAPPED),)


def test_a_file_that_many_have_mapped_is_found_for_each_once_it_is_known(tmp_path: Path) -> None:
    for pid in (7, 8, 9):
        proc_with(tmp_path, pid, maps=LINE.format(inode=9, path="/dev/x"))
    (tmp_path / "8/map_files").mkdir()  # the mapping of 7 has just gone
    (tmp_path / "8/map_files/7f0000000000-7f0000001000").symlink_to(FULL)
    found = procfs.uses(tmp_path, [number(FULL)])
    assert found == (use(8, How.MAPPED), use(9, How.MAPPED))


def test_mappings_without_number_take_little_memory_and_the_last_one_is_found(
    tmp_path: Path,
) -> None:
    name = f"/{'x' * 3900}"
    maps = (LINE.format(inode=inode, path=f"{name}/{inode}") for inode in range(10_000, 15_000))
    last = LINE.replace("7f0000000000", "7f0000000fff").format(inode=9, path="/some/where")
    proc = proc_with(tmp_path, 7, maps="".join((*maps, last)))
    (tmp_path / "7/map_files").mkdir()
    (tmp_path / "7/map_files/7f0000000000-7f0000001000").symlink_to("/dev/null")
    (tmp_path / "7/map_files/7f0000000fff-7f0000001000").symlink_to(FULL)
    tracemalloc.start()
    try:
        assert procfs.uses(proc, [number(FULL)]) == (use(7, How.MAPPED),)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20  # of 20 MB


def test_memory_without_a_file_is_no_device(tmp_path: Path) -> None:
    maps = "7f00-7f01 rw-p 00000000 00:00 0 \n7f02-7f03 rw-p 00000000 00:00 0      [stack]\n"
    assert procfs.uses(proc_with(tmp_path, 7, maps=maps), [number(FULL)]) == ()


def test_without_the_capability_the_process_s_own_path_says_what_is_mapped() -> None:
    without = ["setpriv", "--bounding-set=-all,+sys_ptrace"] if os.geteuid() == 0 else []
    with process_that(MAP_AND_CLOSE, ZERO) as pid:
        argv = [*without, sys.executable, "-c", SCAN, str(number(ZERO))]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert f"{pid} mapped" in done.stdout.splitlines()


SCAN = """
import sys
from pathlib import Path
from kata_gpu.host import procfs
for use in procfs.uses(Path("/proc"), [int(sys.argv[1])]):
    print(use.pid, use.how)
"""


def vfio(root: Path, fdinfo: str) -> Path:
    proc = proc_with(root, 7, "anon_inode:[vfio-device]")
    (root / "7/fdinfo").mkdir()
    (root / "7/fdinfo/3").write_text(f"pos:\t0\nflags:\t02000002\n{fdinfo}")
    return proc


def test_a_vfio_device_is_found_by_the_address_in_its_descriptor(tmp_path: Path) -> None:
    syspath = f"/sys/devices/pci0000:40/0000:40:01.0/{GPU}"
    proc = vfio(tmp_path, f"vfio-device-syspath: {syspath}\n")
    found = procfs.uses(proc, [number(FULL)])
    assert found == (use(7, device=PciAddress.parse(GPU)),)


@pytest.mark.parametrize(
    "fdinfo",
    [
        "",
        "vfio-device-syspath: /sys/devices/virtual/mtty/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n",
        "vfio-device-syspath: 0000:41:00.0\n",
    ],
    ids=["before 7.x", "mediated", "no path"],
)
def test_a_vfio_device_that_names_no_function_says_nothing(tmp_path: Path, fdinfo: str) -> None:
    assert procfs.uses(vfio(tmp_path, fdinfo), [number(FULL)]) == ()


def of_the_kernel(proc: Path, pid: int, *children: int) -> None:
    """Let a process say that it is a thread of the kernel, whatever else it has."""
    (proc / f"{pid}/task/{pid}").mkdir(parents=True)
    (proc / f"{pid}/stat").write_text(f"{pid} (k) r/0:0) I 2 0 0 0 -1 2129984 0 0\n")
    (proc / f"{pid}/task/{pid}/children").write_text(" ".join(map(str, children)) + " \n")


def test_threads_of_the_kernel_are_passed_over(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, 7, FULL)
    of_the_kernel(proc, 2, 7)
    of_the_kernel(proc, 7)
    assert procfs.kernel_threads(proc) == {2, 7}
    assert procfs.uses(proc, [number(FULL)]) == ()


def test_a_program_that_the_kernel_started_is_looked_at(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, 7, FULL)
    of_the_kernel(proc, 2, 7)
    (proc / "7/stat").write_text("7 (core 2129984) S 2 0 0 0 -1 4194560 0 0\n")
    assert procfs.uses(proc, [number(FULL)]) == (use(7),)


def test_where_process_2_is_somebody_s_its_children_are_looked_at(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, 7, FULL)
    of_the_kernel(proc, 2, 7)
    of_the_kernel(proc, 7)
    (proc / "2/stat").write_text("2 (sh) S 1 0 0 0 -1 4194560 0 0\n")
    assert procfs.uses(proc, [number(FULL)]) == (use(7),)


def test_this_process_does_not_count() -> None:
    with FULL.open("rb"):
        assert procfs.uses(PROC, [number(FULL)]) == ()


def test_every_user_of_every_device_is_told_by_pid(tmp_path: Path) -> None:
    proc_with(tmp_path, 20, FULL)
    proc_with(tmp_path, 3, ZERO, FULL, FULL)
    assert procfs.uses(tmp_path, [number(FULL), number(ZERO)]) == (
        use(3, device=number(ZERO)),
        use(3),
        use(20),
    )


def test_without_devices_no_process_is_looked_at(tmp_path: Path) -> None:
    assert procfs.uses(tmp_path / "none", []) == ()


def test_a_process_that_ends_meanwhile_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "4").mkdir()
    proc_with(tmp_path, 5, "/gone", FULL)
    assert procfs.uses(tmp_path, [number(FULL)]) == (use(5),)


def test_without_procfs_nobody_can_say_that_a_device_is_free(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot list .*proc: No such file"):
        procfs.uses(tmp_path / "proc", [number(FULL)])


# what a process says of itself


def test_a_process_is_described_by_its_own_files() -> None:
    with process_with(FULL) as pid:
        process = procfs.process(PROC, pid)
    assert process.uid == os.getuid()
    assert process.command.startswith("python")
    assert ":/" in process.cgroups


def test_a_command_is_cleaned_of_what_a_terminal_would_act_on(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3/comm").write_bytes(b"a\n\x1b[2J\xffb\n")
    assert procfs.process(tmp_path, 3).command == "a??[2J\ufffdb"


def test_nothing_is_known_of_a_process_that_has_ended(tmp_path: Path) -> None:
    gone = procfs.process(tmp_path, 3)
    assert (gone.command, gone.uid, gone.cgroups) == ("?", None, "")
