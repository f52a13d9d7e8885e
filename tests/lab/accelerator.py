"""Whether KVM works here: not whether /dev/kvm opens, but whether a guest prints under it."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.lab import process
from tests.lab.kernel import Kernel

_DEADLINE_S: Final = 8.0  # the first line comes within one second where it comes at all
_FIRST_WORDS: Final = "Linux version"


def choose(kernel: Kernel, cache: Path) -> str:
    """Return "kvm" where it was seen to work since this machine booted, else "tcg"."""
    if forced := os.environ.get("KATA_GPU_LAB_ACCEL"):
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    version = process.output(("qemu-system-x86_64", "--version"), timeout_s=30).split()[3]
    verdict = cache / f"accelerator-{version}"
    if verdict.exists():
        seen_boot_id, accelerator = verdict.read_text(encoding="ascii").split()
        if seen_boot_id == boot_id:
            return accelerator
    accelerator = "kvm" if _prints_under_kvm(kernel) else "tcg"
    verdict.write_text(f"{boot_id} {accelerator}\n", encoding="ascii")
    return accelerator


def _prints_under_kvm(kernel: Kernel) -> bool:
    """Boot the kernel until its first line, for a few seconds at most."""
    with tempfile.TemporaryDirectory(prefix="kata-gpu-lab-") as folder:
        console = Path(folder) / "console"
        argv = (
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host"),
            *("-m", "256M", "-no-reboot", "-serial", f"file:{console}"),
            *("-kernel", str(kernel.vmlinux), "-append", "console=ttyS0 earlyprintk=ttyS0"),
        )
        with subprocess.Popen(
            argv,
            env=process.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as qemu:
            deadline = time.monotonic() + _DEADLINE_S
            printed = False
            while not printed and qemu.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                printed = console.exists() and _FIRST_WORDS in console.read_text(errors="replace")
            qemu.kill()
    return printed
