"""Where Kata reads its configuration: beside the real file, whatever links lead to it."""

from pathlib import Path

import pytest

from kata_gpu.discover import inventory as discover
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel

CONFIG = "/opt/kata/configuration.toml"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    root = tmp_path / "root"
    root.mkdir()
    found = nodes.bare(root)
    found.tree.text(CONFIG.removeprefix("/"), "[hypervisor.qemu]\n")
    return found


def base(kernel: FakeKernel, config: str = CONFIG) -> tuple[str | None, str | None]:
    """Return the folder of a handler's base file, and why there is none."""
    found = discover.collect(kernel.host, handlers={"kata": config}).kata[0]
    assert (found.handler, found.config) == ("kata", config)
    return found.directory, found.reason


def link(kernel: FakeKernel, path: str, target: str) -> str:
    place = kernel.host.path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return path


def test_a_base_file_is_where_it_is(kernel: FakeKernel) -> None:
    assert base(kernel) == ("/opt/kata", None)


def test_a_base_file_behind_links_is_where_the_last_one_leads(kernel: FakeKernel) -> None:
    inner = link(kernel, "/opt/kata/runtimes/a.toml", "../configuration.toml")
    outer = link(kernel, "/etc/kata-containers/b.toml", "../../opt/kata/runtimes/a.toml")
    assert base(kernel, inner) == base(kernel, outer) == ("/opt/kata", None)


def test_a_folder_that_is_a_link_is_followed(kernel: FakeKernel) -> None:
    link(kernel, "/etc/kata", "../opt/kata")
    assert base(kernel, "/etc/kata/configuration.toml") == ("/opt/kata", None)


def test_a_missing_base_file_says_so(kernel: FakeKernel) -> None:
    directory, reason = base(kernel, "/opt/kata/none.toml")
    assert (directory, reason) == (None, "/opt/kata/none.toml does not exist")


def test_a_link_to_nowhere_is_a_missing_base_file(kernel: FakeKernel) -> None:
    dangling = link(kernel, "/opt/kata/dangling.toml", "none.toml")
    assert base(kernel, dangling) == (None, "/opt/kata/dangling.toml does not exist")


def test_a_folder_is_no_base_file(kernel: FakeKernel) -> None:
    assert base(kernel, "/opt/kata") == (None, "/opt/kata is not a file")


def test_a_link_in_a_circle_is_not_followed(kernel: FakeKernel) -> None:
    directory, reason = base(kernel, link(kernel, "/opt/kata/loop.toml", "loop.toml"))
    assert directory is None
    assert reason == "cannot resolve /opt/kata/loop.toml: too many levels of symbolic links"


@pytest.mark.parametrize("target", ["../../../outside.toml", "/outside.toml"])
def test_no_link_leads_out_of_the_root(target: str, kernel: FakeKernel) -> None:
    outside = kernel.host.root.parent / "outside.toml"
    outside.touch()
    try:
        found = base(kernel, link(kernel, "/opt/kata/link.toml", target))
    finally:
        outside.unlink()
    assert found == (None, "/opt/kata/link.toml does not exist")


def test_a_drop_in_that_is_there_is_read_for_the_planner(kernel: FakeKernel) -> None:
    kernel.tree.text("opt/kata/config.d/60-kata-gpu.toml", "ours\n")
    found = discover.collect(kernel.host, handlers={"kata": CONFIG, "other": CONFIG})
    assert [(file.path, file.content) for file in found.files] == [
        ("/opt/kata/config.d/60-kata-gpu.toml", "ours\n")
    ]
