"""Kata is found where its installers put it, each real file once, and nothing there can harm."""

import json
import os
import time
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.discover import kata as discover
from kata_gpu.host import Host, entries
from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.kata import EntryKind, InstalledFile, Provenance
from tests import passthrough
from tests.test_cli import complaint, run
from tests.test_kata_corpus import make_files
from tests.test_kata_effective import base_text

KATA: Final = "/opt/kata/share/defaults/kata-containers"
GO: Final = f"{KATA}/runtimes/qemu-nvidia-gpu/configuration-qemu-nvidia-gpu.toml"
_SHIM: Final = "qemu-nvidia-gpu-runtime-rs"
RUST: Final = f"{KATA}/runtime-rs/runtimes/{_SHIM}/configuration-{_SHIM}.toml"
SNP: Final = f"{KATA}/runtimes/qemu-nvidia-gpu-snp/configuration-qemu-nvidia-gpu-snp.toml"


def put(root: Path, path: str, text: str = "") -> Path:
    at = passthrough.put(root, path, text)
    make_files(root, text)
    return at


def link(root: Path, path: str, target: str) -> None:
    at = root / path.removeprefix("/")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(target)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node with kata-deploy's NVIDIA handlers."""
    put(tmp_path, "/opt/kata/VERSION", "4.1.0\n")
    put(tmp_path, GO, base_text("qemu-nvidia-gpu"))
    put(tmp_path, SNP, base_text("qemu-nvidia-gpu-snp"))
    put(tmp_path, RUST, base_text(_SHIM))
    link(tmp_path, f"{KATA}/configuration-qemu-nvidia-gpu.toml", GO.removeprefix(f"{KATA}/"))
    link(tmp_path, f"{KATA}/configuration.toml", "configuration-qemu-nvidia-gpu.toml")
    link(
        tmp_path,
        f"{KATA}/runtime-rs/configuration-{_SHIM}.toml",
        f"runtimes/{_SHIM}/{RUST.rpartition('/')[2]}",
    )
    return tmp_path


def installed(root: Path, *prefixes: str) -> dict[str, InstalledFile]:
    return {file.name: file for file in discover.installed(Host.at(root), prefixes)}


def test_kata_deploys_handlers_are_found_once_behind_their_links(root: Path) -> None:
    found = installed(root)
    assert {name: file.configuration.path for name, file in found.items()} == {
        "kata-qemu-nvidia-gpu": GO,
        "kata-qemu-nvidia-gpu-snp": SNP,
        "kata-qemu-nvidia-gpu-runtime-rs": RUST,
    }
    assert {file.provenance for file in found.values()} == {Provenance.KATA_DEPLOY}
    assert {file.version for file in found.values()} == {"4.1.0"}


def test_custom_runtimes_have_the_name_of_their_folder(root: Path) -> None:
    path = f"{KATA}/custom-runtimes/my-gpu/configuration-qemu-nvidia-gpu.toml"
    put(root, path, base_text("qemu-nvidia-gpu"))
    found = installed(root)["my-gpu"]
    assert (found.config, found.provenance) == (path, Provenance.CUSTOM)


def test_a_further_installation_has_its_suffix_in_the_names(root: Path) -> None:
    path = GO.replace("/opt/kata/", "/opt/kata-next/")
    put(root, path)
    found = installed(root)["kata-qemu-nvidia-gpu-next"]
    assert (found.config, found.version) == (path, None)


def test_a_prefix_of_the_settings_is_looked_below(root: Path) -> None:
    path = GO.replace("/opt/kata/", "/srv/kata/")
    put(root, path)
    put(root, "/srv/kata/VERSION", "3.32.0")
    (found,) = (f for f in installed(root, "/srv/kata").values() if f.config == path)
    assert found.version == "3.32.0"


def test_a_distributions_files_are_found(tmp_path: Path) -> None:
    put(tmp_path, "/usr/share/defaults/kata-containers/configuration-qemu.toml")
    put(tmp_path, "/usr/share/defaults/kata-containers/runtime-rs/configuration-dragonball.toml")
    put(tmp_path, "/etc/kata-containers/configuration.toml")
    put(tmp_path, "/etc/kata-containers/other.toml")
    found = installed(tmp_path)
    assert set(found) == {"kata-qemu", "kata-dragonball", "kata"}
    assert {file.provenance for file in found.values()} == {Provenance.DISTRIBUTION}


@pytest.mark.parametrize("text", ["", "main", "4.1.0 and more", "4.1.0\n4.2.0", "\x1b[31m4.1.0"])
def test_a_version_file_that_holds_none_says_nothing(root: Path, text: str) -> None:
    put(root, "/opt/kata/VERSION", text)
    assert {file.version for file in installed(root).values()} == {None}


def test_what_the_blueprint_names_is_found_anywhere(root: Path) -> None:
    put(root, "/srv/mine.toml")
    mine = KataHandler(name="mine", runtime=Runtime.RUST, config="/srv/mine.toml")
    link_to = KataHandler(
        name="gpu", runtime=Runtime.GO, config=f"{KATA}/configuration-qemu-nvidia-gpu.toml"
    )
    gone = KataHandler(name="gone", runtime=Runtime.GO, config="/srv/gone.toml")
    found = discover.installed(Host.at(root), (), (mine, link_to, gone))
    declared = {f.name: (f.configuration.path, f.provenance) for f in found if f.declared}
    assert declared == {
        "mine": ("/srv/mine.toml", Provenance.BLUEPRINT),
        "gpu": (GO, Provenance.KATA_DEPLOY),
    }


# config.d


def test_every_kind_of_entry_is_told_apart_and_only_files_are_opened(root: Path) -> None:
    beside = Path(f"{root}{GO}").parent / "config.d"
    put(beside, "10-file.toml", "a = 1\n")
    put(beside, "bytes.toml").write_bytes(b"\xff")
    (beside / "sub").mkdir()
    os.mkfifo(beside / "fifo")
    (beside / "link").symlink_to("10-file.toml")
    (beside / "nowhere").symlink_to("/gone")
    (beside / "circle").symlink_to("circle")
    (beside / "folder").symlink_to("sub")
    (beside / "pipe").symlink_to("fifo")
    found = {e.name: e for e in discover.configuration(Host.at(root), GO).entries}
    assert {name: (entry.kind, entry.text) for name, entry in found.items()} == {
        "10-file.toml": (EntryKind.FILE, "a = 1\n"),
        "bytes.toml": (EntryKind.FILE, None),
        "sub": (EntryKind.DIRECTORY, None),
        "fifo": (EntryKind.OTHER, None),
        "link": (EntryKind.LINK, "a = 1\n"),
        "nowhere": (EntryKind.LINK, None),
        "circle": (EntryKind.LINK, None),
        "folder": (EntryKind.LINK, None),
        "pipe": (EntryKind.LINK, None),
    }
    assert all((entry.text is None) == (entry.reason is not None) for entry in found.values())


def test_a_link_out_of_the_root_leads_nowhere(root: Path) -> None:
    outside = put(root.parent, f"{root.name}-outside.toml", "secret = 1\n")
    beside = Path(f"{root}{GO}").parent / "config.d"
    beside.mkdir()
    (beside / "out").symlink_to(outside)
    (beside / "up").symlink_to("../" * 20 + str(outside).removeprefix("/"))
    found = discover.configuration(Host.at(root), GO).entries
    assert [entry.text for entry in found] == [None, None]


def test_what_is_read_has_bounds(root: Path) -> None:
    beside = Path(f"{root}{GO}").parent / "config.d"
    put(beside, "big.toml", "#" * (entries.FILE_MAX_BYTES + 1))
    (entry,) = discover.configuration(Host.at(root), GO).entries
    assert entry.reason is not None
    assert f"longer than {entries.FILE_MAX_BYTES} bytes" in entry.reason
    for number in range(entries.ENTRIES_MAX + 9):
        put(beside, f"{number:03}.toml")
    found = discover.configuration(Host.at(root), GO)
    assert len(found.entries) == entries.ENTRIES_MAX
    assert found.unlisted == f"it has more than {entries.ENTRIES_MAX} entries"


def test_a_folder_of_large_files_is_not_read_to_its_end(root: Path) -> None:
    beside = Path(f"{root}{GO}").parent / "config.d"
    for number in range(12):
        put(beside, f"{number:02}.toml", "#" * entries.FILE_MAX_BYTES)
    found = discover.configuration(Host.at(root), GO)
    assert len(found.entries) == 9
    assert found.unlisted == f"it holds more than {entries.FOLDER_MAX_BYTES} bytes"


def test_a_config_d_that_is_no_directory_is_said(root: Path) -> None:
    put(root, f"{GO.rpartition('/')[0]}/config.d")
    found = discover.configuration(Host.at(root), GO)
    assert found.unlisted == "cannot list it: Not a directory"


# The verb


def listed(root: Path, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        run("kata", "list", "--root", root, "-o", "json", *options).stdout
    )["handlers"]
    return found


BLUEPRINT: Final = f"""\
schema = 1
version = "1"
[[kata.handler]]
name = "kata-qemu-nvidia-gpu"
runtime = "go"
config = "{GO}"
"""


def test_the_list_is_a_table(root: Path) -> None:
    put(root, "/etc/kata-gpu/blueprint.toml", BLUEPRINT)
    done = run("kata", "list", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["HANDLER", "RUNTIME", "HYPERVISOR", "VERSION", "INSTALLED", "TEE", "BLUEPRINT"],
        ["kata-qemu-nvidia-gpu", "go", "qemu", "4.1.0", "kata-deploy", "none", "yes"],
        ["kata-qemu-nvidia-gpu-runtime-rs", "rust", "qemu", "4.1.0", "kata-deploy", "none", "no"],
        ["kata-qemu-nvidia-gpu-snp", "go", "qemu", "4.1.0", "kata-deploy", "snp", "no"],
    ]


def test_the_list_has_all_for_programs(root: Path) -> None:
    assert listed(root)[0] == {
        "name": "kata-qemu-nvidia-gpu",
        "runtime": "go",
        "hypervisor": "qemu",
        "base": GO,
        "config": GO,
        "version": "4.1.0",
        "installed": "kata-deploy",
        "tee": "none",
        "in_blueprint": False,
        "problems": [],
    }


def test_a_node_without_kata_says_so(tmp_path: Path) -> None:
    assert run("kata", "list", "--root", tmp_path).stdout == "no Kata handler is installed\n"


def test_a_broken_handler_is_told_and_has_the_status_of_what_is_refused(root: Path) -> None:
    put(root, f"{GO.rpartition('/')[0]}/config.d/90-\x1b[31m.toml", "no TOML")
    done = run("kata", "list", "--root", root)
    assert done.returncode == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.startswith("kata-gpu: kata-qemu-nvidia-gpu: ")
    assert "not TOML" in done.stderr


@pytest.mark.parametrize("asked", ["kata-qemu-nvidia-gpu", GO], ids=["handler", "path"])
def test_what_counts_is_shown_as_toml(root: Path, asked: str) -> None:
    put(root, f"{GO.rpartition('/')[0]}/config.d/90-x.toml", '[runtime]\nvfio_mode = "vfio"\n')
    done = run("kata", "show", asked, "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    expected = tomllib.loads(base_text("qemu-nvidia-gpu"))
    expected["runtime"]["vfio_mode"] = "vfio"
    assert tomllib.loads(done.stdout) == expected
    origin = run("kata", "show", asked, "--root", root, "--origin").stdout
    assert tomllib.loads(origin) == expected
    assert f'vfio_mode = "vfio"  # from {GO.rpartition("/")[0]}/config.d/90-x.toml\n' in origin


def test_what_counts_is_shown_for_programs(root: Path) -> None:
    put(root, f"{GO.rpartition('/')[0]}/config.d/90-x.toml", "[hypervisor.qemu]\nx = 1\n")
    done = run("kata", "show", "kata-qemu-nvidia-gpu", "--root", root, "-o", "json")
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert (said["runtime"], said["refused"]) == ("go", True)
    assert said["configuration"]["hypervisor"]["qemu"]["machine_type"] == "q35"
    assert said["origins"]["hypervisor.qemu.machine_type"] == GO
    (fault,) = said["faults"]
    assert (fault["rule"], fault["key"]) == ("unknown-key", "hypervisor.qemu.x")


def test_the_blueprints_word_on_the_runtime_counts(root: Path) -> None:
    put(root, "/etc/kata-gpu/blueprint.toml", BLUEPRINT.replace('"go"', '"rust"'))
    done = run("kata", "show", "kata-qemu-nvidia-gpu", "--root", root)
    assert done.returncode == 3
    assert "agent.kata.dial_timeout: the rust runtime knows no key" in done.stderr


def test_an_unknown_handler_is_named_with_those_there_are(root: Path) -> None:
    said = complaint(run("kata", "show", "kata-x", "--root", root))
    assert "there is no such handler (there are: kata-qemu-nvidia-gpu, " in said


@pytest.mark.parametrize("path", ["/gone.toml", "/opt/kata"])
def test_a_path_without_a_file_is_refused(root: Path, path: str) -> None:
    assert complaint(run("kata", "show", path, "--root", root)).startswith(
        f"kata-gpu: cannot show {path}: {path} "
    )


def test_a_blueprint_that_cannot_be_used_is_no_hindrance(root: Path) -> None:
    put(root, "/etc/kata-gpu/blueprint.toml", "no TOML")
    done = run("kata", "list", "--root", root)
    assert done.returncode == 0
    assert "this goes on without it" in done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_a_fifo_in_config_d_holds_nobody(root: Path) -> None:
    beside = Path(f"{root}{GO}").parent / "config.d"
    beside.mkdir()
    os.mkfifo(beside / "10-x.toml")
    started = time.monotonic()
    done = run("kata", "show", "kata-qemu-nvidia-gpu", "--root", root)
    assert done.returncode == 3
    assert time.monotonic() - started < 10
    assert "it is no regular file" in done.stderr


def test_a_kernel_that_is_not_there_is_told(root: Path) -> None:
    (root / "opt/kata/share/kata-containers/vmlinuz-nvidia-gpu.container").unlink()
    put(root, f"{GO.rpartition('/')[0]}/config.d/10-x.toml", '[hypervisor.qemu]\nimage = "/x"\n')
    (root / "x").unlink()
    done = run("kata", "show", "kata-qemu-nvidia-gpu", "--root", root)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"kata-gpu: refused: {GO}: hypervisor.qemu.kernel: there is no /opt/kata/share/"
        f"kata-containers/vmlinuz-nvidia-gpu.container, and no pod starts without",
        f"kata-gpu: refused: {GO.rpartition('/')[0]}/config.d/10-x.toml: hypervisor.qemu.image: "
        f"there is no /x, and no pod starts without",
    ]


def test_what_no_value_names_any_more_may_be_absent(root: Path) -> None:
    put(root, f"{GO.rpartition('/')[0]}/config.d/10-x.toml", '[hypervisor.qemu]\nimage = "/x"\n')
    (root / "opt/kata/share/kata-containers/kata-containers-nvidia-gpu.img").unlink()
    assert run("kata", "show", "kata-qemu-nvidia-gpu", "--root", root).returncode == 0


def test_who_looks_for_harm_reads_no_file_that_is_as_it_was_installed(root: Path) -> None:
    put(root, f"{RUST.rpartition('/')[0]}/config.d/10-x.toml")
    put(root, f"{SNP.rpartition('/')[0]}/config.d")
    (root / GO.removeprefix("/")).with_name("config.d").mkdir()
    host = Host.at(root)
    assert {file.configuration.path for file in discover.touched(host)} == {RUST, SNP}
    wanted = KataHandler(name="x", runtime=Runtime.GO, config=GO)
    found = {f.configuration.path: f for f in discover.touched(host, (), (wanted,))}
    assert set(found) == {RUST, SNP, GO}
    assert found[GO].configuration.text == base_text("qemu-nvidia-gpu")
