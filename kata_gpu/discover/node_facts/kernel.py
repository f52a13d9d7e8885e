"""What the kernel shows of itself: IOMMU, command line, taint, pages, trusted environments."""

import re
from typing import Final

from kata_gpu.discover import platform
from kata_gpu.discover.node_facts.known import known, text
from kata_gpu.errors import HostError
from kata_gpu.host import Host, leftovers
from kata_gpu.model.node_facts import Hugepages, KernelFacts

_PAGES: Final = re.compile(r"hugepages-([0-9]{1,12})kB")
_HUGEPAGES: Final = "kernel/mm/hugepages"
_UNSAFE: Final = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
_NOIOMMU: Final = "module/vfio/parameters/enable_unsafe_noiommu_mode"
_TEES: Final = {
    "kvm_amd.sev_snp": "module/kvm_amd/parameters/sev_snp",
    "kvm_intel.tdx": "module/kvm_intel/parameters/tdx",
}


def read(host: Host) -> KernelFacts:
    """Return all of it."""
    return KernelFacts(
        platform=known(lambda: platform.read(host)[0]),
        iommu_groups=known(lambda: len(host.sysfs.names("kernel/iommu_groups"))),
        command_line=known(lambda: _command_line(text(host, "/proc/cmdline"))),
        unsafe_interrupts=known(lambda: _flag(host, _UNSAFE)),
        noiommu_mode=known(lambda: _flag(host, _NOIOMMU)),
        taint=known(lambda: int(text(host, "/proc/sys/kernel/tainted"))),
        operations=known(lambda: leftovers.find(host.path("/proc"))),
        hugepages=known(lambda: _hugepages(host)),
        tee_parameters=known(
            lambda: tuple((name, _parameter(host, path)) for name, path in _TEES.items())
        ),
    )


def _command_line(line: str) -> tuple[str, ...]:
    """Split at spaces; what follows ``--`` is for init."""
    words = line.split()
    return tuple(words[: words.index("--")] if "--" in words else words)


def _parameter(host: Host, path: str) -> str | None:
    return host.sysfs.read(path) if host.sysfs.exists(path) else None


def _flag(host: Host, path: str) -> bool | None:
    value = _parameter(host, path)
    if value is None:
        return None
    if value not in {"Y", "N"}:
        raise HostError(f"cannot understand {path}: it is {value[:16]!r}, not Y or N")
    return value == "Y"


def _hugepages(host: Host) -> tuple[Hugepages, ...]:
    found = []
    for name in host.sysfs.names(_HUGEPAGES):
        if match := _PAGES.fullmatch(name):
            counts = host.sysfs.attributes(
                f"{_HUGEPAGES}/{name}", ("nr_hugepages", "free_hugepages")
            )
            found.append(
                Hugepages(
                    size_kib=int(match.group(1)),
                    total=int(counts.get("nr_hugepages", "")),
                    free=int(counts.get("free_hugepages", "")),
                )
            )
    return tuple(sorted(found, key=lambda pages: pages.size_kib))
