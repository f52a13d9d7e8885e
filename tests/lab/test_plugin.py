"""What happens to a lab test in a guest is what pytest reports on the host.

Each test runs the tests of a small project. Their guest is a local one: the relay and the
guest's pytest are real, the kernel is not.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab.inside import GUEST_VARIABLE
from tests.lab.machine import CHECKOUT
from tests.lab.reports import FILE_VARIABLE

_CONFTEST: Final = f"""
import os
from pathlib import Path
from tests.lab.local_guest import booting_in
from tests.lab.plugin import HostSide

def pytest_configure(config):
    if "{GUEST_VARIABLE}" not in os.environ:
        config.addinivalue_line("markers", "lab: as in the plugin")
        boot = booting_in(Path(__file__).parent)
        config.pluginmanager.register(HostSide(config, boot, has=lambda device: False))
"""


@dataclass(frozen=True, slots=True)
class _Result:
    """What pytest on the host said."""

    status: int
    text: str
    counts: dict[str, int]
    """Tests, failures, errors and skips in the JUnit file."""

    guests: tuple[Path, ...]
    """The folders of the guests that were booted."""


def _run(folder: Path, tests: str, *options: str) -> _Result:
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -m 'lab or not lab'\n")
    (folder / "test_it.py").write_text(f"import os, time, pytest\n{tests}")
    inherited = {name: value for name, value in os.environ.items() if name != GUEST_VARIABLE}
    argv = (sys.executable, "-m", "pytest", "-v", "-rA", "--junitxml=junit.xml", *options)
    result = subprocess.run(
        argv,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    junit = ET.parse(folder / "junit.xml")  # noqa: S314 - our own file
    suite = junit.getroot().find("testsuite")
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: int(suite.get(name, "0")) for name in names} if suite is not None else {}
    guests = tuple(sorted(folder.glob("guest-*")))
    return _Result(result.returncode, result.stdout + result.stderr, counts, guests)


def test_every_kind_of_result_comes_back(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        f"""
pytestmark = pytest.mark.lab
@pytest.fixture
def broken(): raise OSError("no such fixture")
@pytest.mark.parametrize("word", ["a b", "ü"])
def test_passes(word): assert os.environ["{GUEST_VARIABLE}"] == "node"
def test_fails(): print("said before"); assert 1 + 1 == 3
def test_skips(): pytest.skip("not today")
def test_breaks(broken): pass
@pytest.mark.xfail
def test_is_known_to_fail(): assert False
""",
    )
    assert result.status == 1
    assert result.counts == {"tests": 6, "failures": 1, "errors": 1, "skipped": 2}
    assert "1 failed, 2 passed, 1 skipped, 1 xfailed, 1 error" in result.text
    for words in ("assert (1 + 1) == 3", "said before", "not today", "OSError: no such fixture"):
        assert words in result.text
    assert [guest.name for guest in result.guests] == ["guest-1-node"]
    assert (result.guests[0] / "ended").exists()


def test_lab_tests_run_last_and_each_topology_in_one_guest(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        f"""
def where(): return os.environ.get("{GUEST_VARIABLE}")
@pytest.mark.lab("single")
def test_a(): assert where() == "single"
def test_b(): assert where() is None
@pytest.mark.lab("bridge")
def test_c(): assert where() == "bridge"
@pytest.mark.lab("single")
def test_d(): assert where() == "single"
""",
    )
    lines = [line for line in result.text.splitlines() if "PASSED  " in line or "PASSED [" in line]
    assert [line.split("::")[1][:6] for line in lines] == ["test_b", "test_a", "test_d", "test_c"]
    assert [guest.name for guest in result.guests] == ["guest-1-single", "guest-2-bridge"]
    assert result.status == 0


def test_tests_of_a_machine_that_qemu_does_not_have_are_not_selected(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        """
@pytest.mark.lab("igb")
def test_a(): assert False
@pytest.mark.lab("single")
def test_b(): pass
""",
    )
    assert "1 passed, 1 deselected" in result.text
    assert "not selected: 1 test of a machine with igb, which the QEMU" in result.text
    assert [guest.name for guest in result.guests] == ["guest-1-single"]
    assert result.status == 0


def test_a_test_that_hangs_fails_with_its_stack_and_the_rest_gets_a_fresh_guest(
    tmp_path: Path,
) -> None:
    result = _run(
        tmp_path,
        """
@pytest.mark.lab
def test_before(): pass
@pytest.mark.lab(timeout_s=2)
def test_hangs():
    def waits_for_ever(): time.sleep(1000)
    waits_for_ever()
@pytest.mark.lab
def test_after(): pass
""",
    )
    assert result.counts == {"tests": 3, "failures": 1, "errors": 0, "skipped": 0}
    assert "not done after 2 s, the guest was ended" in result.text
    assert "in waits_for_ever" in result.text
    assert "the local guest's console" in result.text
    assert len(result.guests) == 2


def test_a_second_guest_that_is_lost_is_the_last(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        """
pytestmark = pytest.mark.lab
@pytest.mark.parametrize("number", range(4))
def test_dies(number): os._exit(9)
""",
    )
    assert result.counts == {"tests": 4, "failures": 2, "errors": 2, "skipped": 0}
    assert result.text.count("ended with status 9 before this test's end") >= 2
    assert result.text.count("not run: 2 guests were lost before it") >= 2
    assert len(result.guests) == 2


def test_an_abort_of_the_emulator_is_said_and_costs_no_test_its_run(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        f"""
pytestmark = pytest.mark.lab
OUT = os.path.dirname(os.environ.get("{FILE_VARIABLE}", ""))
def test_before(): pass
def test_during():
    if OUT.endswith("guest-1-node"):
        open(OUT + "/abort", "w").close()
        time.sleep(60)
def test_after(): pass
""",
    )
    assert result.counts == {"tests": 3, "failures": 0, "errors": 0, "skipped": 0}
    assert "what it was at is run again: the emulator aborted" in result.text
    assert len(result.guests) == 2


def test_an_emulator_that_aborts_again_fails_what_it_was_at(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        f"""
pytestmark = pytest.mark.lab
def test_during():
    open(os.path.dirname(os.environ["{FILE_VARIABLE}"]) + "/abort", "w").close()
    time.sleep(60)
""",
    )
    assert result.counts == {"tests": 1, "failures": 0, "errors": 1, "skipped": 0}
    assert len(result.guests) == 2


def test_a_guest_that_collects_nothing_is_a_failure(tmp_path: Path) -> None:
    result = _run(
        tmp_path,
        f"""
if "{GUEST_VARIABLE}" in os.environ: raise RuntimeError("only in the guest")
pytestmark = pytest.mark.lab
def test_one(): pass
def test_two(): pass
""",
    )
    assert result.counts == {"tests": 2, "failures": 0, "errors": 2, "skipped": 0}
    assert "RuntimeError: only in the guest" in result.text
    assert len(result.guests) == 1


def test_the_first_failure_ends_it_all_if_so_asked(tmp_path: Path) -> None:
    tests = """
pytestmark = pytest.mark.lab
def test_one(): assert False
def test_two(): time.sleep(60)
"""
    result = _run(tmp_path, tests, "-x")
    assert result.counts["tests"] == 1
    assert (result.guests[0] / "ended").exists()


def test_a_selection_selects_in_the_guest_too(tmp_path: Path) -> None:
    tests = """
pytestmark = pytest.mark.lab
def test_one(): pass
def test_two(): assert False
"""
    result = _run(tmp_path, tests, "-k", "one")
    assert result.status == 0
    assert result.counts["tests"] == 1


def test_collecting_boots_nothing(tmp_path: Path) -> None:
    result = _run(tmp_path, "@pytest.mark.lab\ndef test_one(): pass\n", "--collect-only")
    assert "test_one" in result.text
    assert result.guests == ()


def test_an_unknown_topology_is_a_usage_error(tmp_path: Path) -> None:
    result = _run(tmp_path, "@pytest.mark.lab('toaster')\ndef test_one(): pass\n")
    assert result.status == 4
    assert "no topology 'toaster'" in result.text
