"""A claim brings a GPU from its host driver to a pod VM and back, on a real kernel."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.inside import Machine


@pytest.mark.lab("single", timeout_s=600)
def test_a_claim_brings_a_gpu_to_a_pod_vm_and_back(machine: Machine, short_path: Path) -> None:
    argv = (sys.executable, "-m", "tests.claim_walk", str(short_path), machine.address("gpu"))
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
