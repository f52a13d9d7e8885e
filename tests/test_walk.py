"""The main job once through, in the lab: what ``scripts/demo`` shows."""

import pytest

from tests.lab.inside import Machine
from tests.walk import Walk


@pytest.mark.lab("single", timeout_s=420)
def test_a_gpu_goes_to_a_pod_vm_and_comes_back(machine: Machine) -> None:
    walk = Walk(machine.address("gpu"))
    walk.run()
    assert len(walk.stages) == 8
