"""Watches hear what happens to paths on a real kernel, and nothing else."""

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import files
from kata_gpu.host.watches import Watches
from tests.lab.inside import Machine


def heard(watches: Watches) -> set[str | None]:
    return {hint.changed for hint in watches.drain()}


def is_readable(watches: Watches) -> bool:
    return bool(select.select([watches], [], [], 0)[0])


# What is heard


def write(path: Path) -> None:
    path.write_text("new")


def replace(path: Path) -> None:
    files.replace(path, "new", staging=path.parent)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")
        file.flush()


def chmod(path: Path) -> None:
    path.chmod(0o600)


@pytest.mark.parametrize("change", [write, replace, append, chmod, Path.unlink])
def test_a_change_to_a_file_is_heard(
    watches: Watches, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    watches.watch([path])
    change(path)
    assert is_readable(watches)
    assert heard(watches) == {str(path)}
    assert not is_readable(watches)


def test_a_second_change_after_a_replacement_is_heard_without_watching_anew(
    watches: Watches, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    watches.watch([path])
    for _ in range(3):
        replace(path)
        assert heard(watches) == {str(path)}


def test_of_a_directory_every_entry_is_heard(watches: Watches, tmp_path: Path) -> None:
    watches.watch([tmp_path])
    (tmp_path / "a").touch()
    (hint, *_) = watches.drain()
    assert hint.text == f"create '{tmp_path}/a'"
    assert (hint.changed, hint.opened) == (str(tmp_path), None)


def test_the_neighbours_of_a_file_are_not_heard(watches: Watches, tmp_path: Path) -> None:
    watches.watch([tmp_path / "file"])
    (tmp_path / "file.new").write_text("x")
    (tmp_path / "file.new").unlink()
    assert watches.drain() == ()


def test_what_is_not_there_yet_is_heard_when_it_comes(watches: Watches, tmp_path: Path) -> None:
    path = tmp_path / "a/b/file"
    watches.watch([path])
    (tmp_path / "other").touch()
    assert watches.drain() == ()
    (tmp_path / "a").mkdir()
    assert heard(watches) == {str(path)}
    assert watches.watch([path])
    (tmp_path / "a/b").mkdir()
    assert heard(watches) == {str(path)}
    assert watches.watch([path])
    path.touch()
    assert heard(watches) == {str(path)}


def test_a_directory_that_is_removed_and_made_again_is_heard_again(
    watches: Watches, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    watches.watch([folder])
    folder.rmdir()
    assert heard(watches) == {str(folder)}
    folder.mkdir()
    assert watches.watch([folder])
    (folder / "file").touch()
    assert heard(watches) == {str(folder)}


def test_every_link_on_the_way_is_heard(watches: Watches, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "up").symlink_to("one/../one/.")
    (tmp_path / "again").symlink_to(tmp_path / "up")
    path = tmp_path / "again/file"
    watches.watch([path])
    write(tmp_path / "one/file")
    assert heard(watches) == {str(path)}
    (tmp_path / "next").symlink_to("two")
    assert watches.drain() == ()
    (tmp_path / "next").rename(tmp_path / "up")
    assert heard(watches) == {str(path)}
    assert watches.watch([path])
    write(tmp_path / "one/file")
    assert watches.drain() == ()
    write(tmp_path / "two/file")
    assert heard(watches) == {str(path)}


def test_links_in_a_circle_end(watches: Watches, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    watches.watch([tmp_path / "a"])
    (tmp_path / "b").unlink()
    assert heard(watches) == {str(tmp_path / "a")}


def test_two_paths_to_one_thing_both_hear_it(watches: Watches, tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.touch()
    link.symlink_to("file")
    watches.watch([path, link, tmp_path])
    write(path)
    assert heard(watches) == {str(path), str(link), str(tmp_path)}


def test_who_opens_a_device_node_is_heard_and_who_closes_it(watches: Watches) -> None:
    ours, theirs = pty.openpty()
    node = os.ttyname(theirs)
    watches.watch([Path(node)])
    user = os.open(node, os.O_RDWR | os.O_NOCTTY)
    (hint,) = watches.drain()
    assert (hint.text, hint.opened, hint.changed) == (f"open '{node}'", node, node)
    os.close(user)
    (hint,) = watches.drain()
    assert (hint.text, hint.opened) == (f"close_write '{node}'", None)
    os.close(theirs)
    os.close(ours)


def test_a_node_that_may_not_be_watched_is_heard_through_its_directory() -> None:
    """Nobody may read this terminal, as no container may read a node of VFIO."""
    script = """
import os, sys
from pathlib import Path
from kata_gpu.host.watches import Watches
node, absent = sys.argv[1], "/dev/pts/999999"
if not os.getuid():
    os.setuid(65534)
with Watches.open() as watches:
    assert watches.watch([Path(absent), Path(node)])
    assert not watches.watch([Path(absent), Path(node)])
    os.listdir("/dev/pts")
    assert watches.drain() == ()
    print("watching", flush=True)
    sys.stdin.readline()
    for hint in watches.drain():
        print(hint.text, hint.changed == node, hint.opened == node)
"""
    ours, theirs = pty.openpty()
    other, others = pty.openpty()
    node = os.ttyname(theirs)
    Path(node).chmod(0)
    with subprocess.Popen(
        [sys.executable, "-c", script, node],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "watching\n"
        Path(node).chmod(0o600)
        for path in (node, os.ttyname(others)):
            os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
        said, _ = child.communicate("\n", timeout=10)
    for descriptor in (ours, theirs, other, others):
        os.close(descriptor)
    assert said.splitlines() == [f"open {node!r} True True", f"close_write {node!r} True False"]


# What is not


def test_reading_is_not_heard(watches: Watches, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    watches.watch([tmp_path, tmp_path / "file"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x"]
    assert not is_readable(watches)


def test_our_own_temporaries_are_not_heard(watches: Watches, tmp_path: Path) -> None:
    (tmp_path / "in-the-way").mkdir()
    (tmp_path / "in-the-way/file").touch()
    watches.watch([tmp_path])
    with pytest.raises(HostError, match="cannot write"):
        replace(tmp_path / "in-the-way")
    assert watches.drain() == ()


def test_what_is_watched_no_more_is_not_heard(watches: Watches, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    watches.watch([tmp_path / "a", tmp_path / "b"])
    watches.watch([tmp_path / "b"])
    (tmp_path / "a/file").touch()
    assert watches.drain() == ()
    (tmp_path / "b/file").touch()
    assert heard(watches) == {str(tmp_path / "b")}


def test_only_what_is_new_is_a_reason_to_look_again(watches: Watches, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    assert watches.watch([file])
    assert not watches.watch([file])
    assert watches.watch([other, file]), "the same directory, yet another name"
    assert not watches.watch([file])
    assert watches.watch([other])


# Strangers


def test_a_name_from_outside_is_quoted(watches: Watches, tmp_path: Path) -> None:
    watches.watch([tmp_path])
    os.mknod(os.fsencode(tmp_path) + b"/\n\x1b[2J\xff")
    assert watches.drain()[0].text == f"create '{tmp_path}/\\n\\x1b[2J\\udcff'"


def test_more_than_the_kernel_queues_is_a_hint_for_every_path(
    watches: Watches, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    watches.watch([tmp_path / "a", tmp_path / "b"])
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    one, two = tmp_path / "a/1", tmp_path / "a/2"
    for path in (one, two):
        path.touch()
    for _ in range(limit // 2 + 1):  # events alike in a row would be one
        os.utime(one)
        os.utime(two)
    lost = {hint.changed for hint in watches.drain() if hint.text.startswith("events were lost")}
    assert lost == {str(tmp_path / "a"), str(tmp_path / "b")}
    assert watches.drain() == ()


def test_a_directory_that_is_not_for_us_is_told_and_the_rest_is_watched(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from kata_gpu.errors import HostError
from kata_gpu.host.watches import Watches
root = Path(sys.argv[1])
if not os.getuid():
    os.setuid(65534)
with Watches.open() as watches:
    try:
        watches.watch([root / "closed", root / "open"])
    except HostError as error:
        print(error)
    (root / "open/file").touch()
    print({hint.changed for hint in watches.drain()} == {str(root / "open")})
"""
    root = Path("/tmp") / f"kata-gpu-watches-{os.getpid()}"  # noqa: S108 - nobody can come here
    for name, mode in (("", 0o755), ("closed", 0o000), ("open", 0o777)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, root], check=True, capture_output=True, text=True
        )
    finally:
        (root / "closed").chmod(0o700)
        shutil.rmtree(root)
    assert done.stdout == f"cannot watch {root}/closed: Permission denied\nTrue\n"


def test_no_more_watches_is_told_with_what_to_do(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from kata_gpu.errors import HostError
from kata_gpu.host.watches import Watches
root = Path(sys.argv[1])
folders = [root / str(number) for number in range(9)]
for folder in folders:
    folder.mkdir()
with Watches.open() as watches:
    try:
        watches.watch(folders)
    except HostError as error:
        print(error)
    (folders[0] / "file").touch()
    print({hint.changed for hint in watches.drain()} == {str(folders[0])})
    print(watches.watch(folders[:3]))
"""
    limited = 'echo 5 > /proc/sys/user/max_inotify_watches && exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", limited, sys.executable, script, tmp_path],
        check=True,
        capture_output=True,
        text=True,
    )
    told, first, second = done.stdout.splitlines()
    assert told == (
        f"cannot watch {tmp_path}/5: No space left on device; "
        "raise the sysctl fs.inotify.max_user_watches"
    )
    assert (first, second) == ("True", "False")


def test_no_instance_is_told_with_what_to_do() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(HostError, match=r"cannot watch files: .*max_user_instances"):
            Watches.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# On the node's own kernel


DEVICES: Final = Path("/sys/bus/pci/devices")
USE: Final = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))"


@pytest.fixture
def gpu(machine: Machine) -> Iterator[str]:
    """The address of a GPU that is on vfio-pci meanwhile."""
    address = machine.address("gpu")
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    before = (DEVICES / address / "driver").readlink().name
    rebind(address, "vfio-pci", "vfio-pci")
    yield address
    rebind(address, "\n", before)


def rebind(address: str, override: str, driver: str) -> None:
    (DEVICES / address / "driver_override").write_text(override)
    (DEVICES / address / "driver/unbind").write_text(address)
    Path("/sys/bus/pci/drivers", driver, "bind").write_text(address)


def group_node(address: str) -> str:
    return f"/dev/vfio/{(DEVICES / address / 'iommu_group').readlink().name}"


@pytest.mark.lab
def test_a_write_to_an_override_is_heard_and_a_read_is_not(watches: Watches, gpu: str) -> None:
    override = DEVICES / gpu / "driver_override"
    watches.watch([override])
    assert override.read_text() == "vfio-pci\n"
    assert not is_readable(watches)
    subprocess.run(["sh", "-c", f"echo > {override}"], check=True)
    texts = [hint.text for hint in watches.drain()]
    assert [text.split()[0] for text in texts] == ["modify", "close_write"]
    assert all(text.endswith(f"{gpu}/driver_override'") for text in texts)


@pytest.mark.lab
def test_who_opens_a_vfio_group_is_heard_from_every_mount_namespace(
    watches: Watches, gpu: str
) -> None:
    node = group_node(gpu)
    watches.watch([Path(node)])
    subprocess.run([sys.executable, "-S", "-c", USE, node], check=True)
    assert [(hint.text.split()[0], hint.opened) for hint in watches.drain()] == [
        ("open", node),
        ("close_write", None),
    ]
    mounted = 'mount -t devtmpfs none /mnt && exec "$0" -S -c "$1" "$2"'
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, sys.executable, USE, f"/mnt{node[4:]}"],
        check=True,
    )
    assert [hint.opened for hint in watches.drain()] == [node, None]


@pytest.mark.lab
def test_a_group_that_leaves_vfio_and_comes_back_is_heard(watches: Watches, gpu: str) -> None:
    node = group_node(gpu)
    watches.watch([Path(node)])
    Path("/sys/bus/pci/drivers/vfio-pci/unbind").write_text(gpu)
    assert heard(watches) == {node}
    assert watches.watch([Path(node)])
    Path("/sys/bus/pci/drivers/vfio-pci/bind").write_text(gpu)
    assert heard(watches) == {node}


@pytest.mark.lab
def test_another_network_namespaces_sysfs_is_not_heard(watches: Watches, gpu: str) -> None:
    override = DEVICES / gpu / "driver_override"
    watches.watch([override])
    script = f"mount -t sysfs none /mnt && echo > /mnt{str(override)[4:]}"
    subprocess.run(["unshare", "--mount", "--net", "sh", "-c", script], check=True)
    assert override.read_text() == "(null)\n"
    assert watches.drain() == ()
