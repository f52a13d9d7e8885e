"""What a module's directory says about who uses it."""

from pathlib import Path

import pytest

from kata_gpu.host import modules
from kata_gpu.host.sysfs import Sysfs


def module(root: Path, refcnt: str | None, *holders: str) -> Sysfs:
    home = root / "module/nvidia"
    (home / "holders").mkdir(parents=True)
    for holder in holders:
        (home / "holders" / holder).symlink_to(root)
    if refcnt is not None:
        (home / "refcnt").write_text(refcnt, encoding="ascii")
    return Sysfs(root)


def test_a_module_s_users_are_counted_and_its_modules_named(tmp_path: Path) -> None:
    sysfs = module(tmp_path, "7\n", "nvidia_uvm", "nvidia_modeset")
    assert modules.users(sysfs, "nvidia") == (7, ("nvidia_modeset", "nvidia_uvm"))


@pytest.mark.parametrize("refcnt", [None, "-1\n", "x\n"], ids=["no unload", "going", "other"])
def test_a_count_that_is_none_is_unknown(tmp_path: Path, refcnt: str | None) -> None:
    assert modules.users(module(tmp_path, refcnt), "nvidia") == (None, ())


def test_a_module_that_is_not_loaded_has_no_users(tmp_path: Path) -> None:
    assert modules.users(Sysfs(tmp_path), "nvidia") == (None, ())
