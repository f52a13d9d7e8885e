"""The half of ``scripts/bench bind`` that runs in the guest."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.in_guest import (
    Agent,
    at,
    driver,
    host_pool,
    override,
    pool,
    running_daemon,
    wait_for,
    write_files,
)
from tests.lab.inside import Machine

_ROUNDS: Final = 5
_TIMEOUT_S: Final = 120.0
_TARGET: Final = 3.0


def main() -> None:
    """Take turns, and print every round."""
    machine = Machine.here()
    gpus = [machine.address(role) for role in machine.roles if role.startswith("gpu-") and
            "port" not in role]  # fmt: skip
    times: dict[str, list[float]] = {}
    for number in range(_ROUNDS):
        for name, measure in (
            ("kata-gpu run, from its start", _ours),
            ("kata-gpu run, from a changed blueprint", _warm),
            ("driverctl set-override, eight times", _driverctl),
        ):
            subprocess.run(("modprobe", "-r", "vfio-pci"), check=True)
            with tempfile.TemporaryDirectory(prefix="bind-") as folder:
                elapsed_s = measure(Path(folder), gpus)
            assert {(driver(gpu), override(gpu)) for gpu in gpus} == {("bochs-drm", "(null)")}
            times.setdefault(name, []).append(elapsed_s)
            print(f"round {number}: {elapsed_s:6.2f} s  {name}", flush=True)
    medians = {name: statistics.median(all_s) for name, all_s in times.items()}
    ours_s, warm_s, theirs_s = medians.values()
    for name, median_s in medians.items():
        print(f"median: {median_s:7.2f} s  {name}")
    print(f"driverctl takes {theirs_s / ours_s:.2f} times as long as a start of ours, and "
          f"{theirs_s / warm_s:.2f} times as long as one that runs; target: {_TARGET}")  # fmt: skip


def _ours(folder: Path, gpus: list[str]) -> float:
    pools = pool(*map(at, gpus))
    write_files(folder, pools)
    started = time.monotonic()
    with running_daemon(folder):
        elapsed_s = _until_published(folder, gpus, started)
    _release(folder, pools)
    return elapsed_s


def _warm(folder: Path, gpus: list[str]) -> float:
    pools = pool(*map(at, gpus))
    write_files(folder, host_pool(*map(at, gpus)))
    with running_daemon(folder) as daemon:
        wait_for(lambda: daemon.ask()["ready"], timeout_s=_TIMEOUT_S)
        started = time.monotonic()
        write_files(folder, pools)
        elapsed_s = _until_published(folder, gpus, started)
    _release(folder, pools)
    return elapsed_s


def _until_published(folder: Path, gpus: list[str], started: float) -> float:
    spec = folder / "cdi/kata-gpu-example.com_gpu.json"

    def is_complete() -> bool:
        return spec.exists() and len(json.loads(spec.read_text())["devices"]) == len(gpus)

    wait_for(is_complete, timeout_s=_TIMEOUT_S)
    elapsed_s = time.monotonic() - started
    assert {driver(gpu) for gpu in gpus} == {"vfio-pci"}
    return elapsed_s


def _release(folder: Path, pools: str) -> None:
    assert not Agent(folder, pools).release().failures


def _driverctl(_folder: Path, gpus: list[str]) -> float:
    def call(*words: str) -> None:
        subprocess.run((sys.argv[1], *words), stdin=subprocess.DEVNULL, check=True)

    started = time.monotonic()
    for gpu in gpus:
        call("set-override", gpu, "vfio-pci")
    elapsed_s = time.monotonic() - started
    assert {driver(gpu) for gpu in gpus} == {"vfio-pci"}
    for gpu in gpus:
        call("unset-override", gpu)
    return elapsed_s


if __name__ == "__main__":
    main()
