"""``kata-gpu clear`` takes units out of quarantine on an admin's word, and on nothing less."""

import asyncio
import errno
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.agent import node
from kata_gpu.errors import HeldError
from kata_gpu.host import locks
from kata_gpu.model.ledger import LedgerEntry
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, everything, journal_of
from tests.serving import served
from tests.test_cli import COMMAND, ENVIRONMENT, Done, complaint, run, written

OTHER = nodes.EIGHT_GPUS[1]


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A node whose only GPU could not be reset after its tenant."""
    kernel = nodes.single_gpu(tmp_path)
    written(kernel)
    kernel.fail_write(lambda path, _: path.endswith("/reset"), errno.ENOTTY)
    converge(kernel)
    with kernel.vm_holds(nodes.GPU):
        converge(kernel)
    converge(kernel)
    assert entry(kernel).quarantine is not None
    return kernel


def converge(kernel: FakeKernel) -> None:
    node.converge(kernel.host, SETTINGS, EVERY_GPU, journal_of(kernel.host))


def entry(kernel: FakeKernel) -> LedgerEntry:
    found = journal_of(kernel.host).ledger.entry(nodes.GPU)
    assert found is not None
    return found


def clear(kernel: FakeKernel, *argv: str) -> Done:
    return run("clear", *argv, "--root", kernel.host.root)


def test_without_an_agent_it_changes_the_ledger(kernel: FakeKernel) -> None:
    done = clear(kernel, nodes.GPU, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    found = entry(kernel)
    assert found.quarantine is None
    assert not found.is_used
    assert found.cleaned is not None
    assert found.cleaned.result.startswith("cleared by an admin; it was in quarantine: ")


def test_it_shows_the_evidence_that_is_waved_through(kernel: FakeKernel) -> None:
    first, second, *_ = clear(kernel, nodes.GPU, "--yes").stdout.splitlines()
    assert first.startswith(f"{nodes.GPU} is in quarantine: cannot write '1' to ")
    assert "Inappropriate ioctl for device" in first
    assert second.startswith("  cleaned last at ")


def test_a_unit_named_twice_is_cleared_once(kernel: FakeKernel) -> None:
    done = clear(kernel, nodes.GPU, nodes.GPU, "--yes")
    assert done.stdout.count("is out of quarantine") == 1


def test_without_a_terminal_and_without_yes_nothing_is_cleared(kernel: FakeKernel) -> None:
    before = everything(kernel.host.root)
    done = clear(kernel, nodes.GPU)
    assert "standard input is no terminal; say --yes" in complaint(done)
    assert everything(kernel.host.root) == before


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\x04", 1), ("y\n", 0)], ids=repr)
def test_on_a_terminal_it_asks(kernel: FakeKernel, answer: str, status: int) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = subprocess.run(
        [*COMMAND, "clear", nodes.GPU, "--root", str(kernel.host.root)],
        check=False,
        capture_output=True,
        text=True,
        stdin=theirs,
        env=ENVIRONMENT,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == status
    assert "clear 1 unit, whatever its last user left in it? [y/N]" in done.stdout
    assert (entry(kernel).quarantine is None) is (status == 0)


def test_what_is_not_in_quarantine_is_refused_with_what_is(kernel: FakeKernel) -> None:
    before = everything(kernel.host.root)
    done = clear(kernel, nodes.GPU, OTHER, "--yes")
    assert f"cannot clear {OTHER}: not in quarantine (in quarantine: {nodes.GPU})" in complaint(
        done
    )
    assert everything(kernel.host.root) == before


def test_what_is_no_address_is_wrong_usage(kernel: FakeKernel) -> None:
    done = clear(kernel, "all", "--yes")
    assert done.returncode == 64
    assert "not a PCI address: 'all'" in done.stderr


def test_while_somebody_changes_the_node_nothing_is_cleared(kernel: FakeKernel) -> None:
    with locks.exclusive(kernel.host.path(SETTINGS.lock)):
        done = clear(kernel, nodes.GPU, "--yes")
    assert f"process {os.getpid()} holds" in complaint_after_evidence(done)
    assert entry(kernel).quarantine is not None


def complaint_after_evidence(done: Done) -> str:
    assert "is in quarantine" in done.stdout
    return complaint(done)


# With an agent


def test_a_running_agent_is_asked_and_the_ledger_left_to_it(kernel: FakeKernel) -> None:
    before = everything(kernel.host.path(SETTINGS.state_directory))
    asked: list[dict[str, Any]] = []

    async def agent(wish: dict[str, Any]) -> object:
        asked.append(wish)
        return await asyncio.sleep(0, {"unit": wish["unit"], "state": "available"})

    done = served(
        kernel.host.path(SETTINGS.socket),
        lambda: clear(kernel, nodes.GPU, "--yes"),
        commands={"/v1/clear": agent},
    )
    assert done.returncode == 0
    assert asked == [{"unit": nodes.GPU}]
    assert done.stdout.endswith(f"{nodes.GPU} is out of quarantine, and available now\n")
    assert everything(kernel.host.path(SETTINGS.state_directory)) == before


def test_what_the_agent_refuses_is_told_in_its_words(kernel: FakeKernel) -> None:
    async def agent(_wish: dict[str, Any]) -> object:
        await asyncio.sleep(0)
        raise HeldError("cannot clear it: somebody has it")

    done = served(
        kernel.host.path(SETTINGS.socket),
        lambda: clear(kernel, nodes.GPU, "--yes"),
        commands={"/v1/clear": agent},
    )
    assert "cannot clear it: somebody has it" in complaint_after_evidence(done)
    assert entry(kernel).quarantine is not None


@pytest.mark.parametrize("said", [None, [], {"state": "\x1b[31m"}], ids=repr)
def test_an_answer_without_a_state_is_no_trouble(kernel: FakeKernel, said: object) -> None:
    async def agent(_wish: dict[str, Any]) -> object:
        return await asyncio.sleep(0, said)

    done = served(
        kernel.host.path(SETTINGS.socket),
        lambda: clear(kernel, nodes.GPU, "--yes"),
        commands={"/v1/clear": agent},
    )
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
