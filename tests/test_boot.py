"""What is kept for one boot is told from what is another's."""

from pathlib import Path

import pytest

from kata_gpu.errors import HostError
from kata_gpu.host import Host, boot

ID = "0f6d2e1c-1b8e-4f70-9d5b-0123456789ab"


def node(root: Path, text: str) -> Host:
    path = root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return Host.at(root)


def test_the_kernels_own_word_is_taken(tmp_path: Path) -> None:
    assert boot.identity(node(tmp_path, f"{ID}\n")) == ID


@pytest.mark.parametrize("text", ["", "\n", "a\x00b", "x" * 65])
def test_a_kernel_that_says_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(HostError, match="cannot"):
        boot.identity(node(tmp_path, text))


def test_this_machine_has_one() -> None:
    assert len(boot.identity(Host.at(Path("/")))) == len(ID)
