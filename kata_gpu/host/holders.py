"""Who has a PCI function: the users of its device nodes, with user, container and pod."""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Final

from kata_gpu.errors import HostError
from kata_gpu.host import Host, cgroups, files, nodes, nvml, procfs
from kata_gpu.model.holder import Holder, How
from kata_gpu.model.pci import PciAddress

_USER: Final = re.compile(r"([\w.-]+\$?):[^:]*:([0-9]{1,10}):", re.ASCII)


def find(host: Host, addresses: Iterable[PciAddress]) -> dict[PciAddress, tuple[Holder, ...]]:
    """Return each function's holders, by pid, after one pass over /proc for all of them.

    Whoever has a group's node has every function of the group. This process is nobody's
    holder; its children that read and write for it have no devices at all.

    Raises:
        HostError: processes cannot be listed, or a function's nodes cannot be found.
    """
    named = {address: nodes.of(host, address) for address in addresses}
    numbers = {number for of_one in named.values() for number in of_one}
    people = _People(host)
    uses = procfs.uses(host.path("/proc"), numbers)
    return {
        address: tuple(
            people.holder(use.pid, name, use.how) for use, name in _of_one(uses, address, of_one)
        )
        for address, of_one in named.items()
    }


def at_work(
    host: Host, gpus: Mapping[PciAddress, nvml.Gpu]
) -> dict[PciAddress, tuple[Holder, ...]]:
    """Return whose work NVIDIA's driver runs on each GPU, given NVML's word on them."""
    people = _People(host)
    return {
        address: tuple(people.holder(pid, f"GPU {address}", How.NVML) for pid in gpu.processes)
        for address, gpu in gpus.items()
    }


def _of_one(
    uses: Collection[procfs.Use], address: PciAddress, names: dict[int, str]
) -> list[tuple[procfs.Use, str]]:
    """Choose what concerns one function; a node says more than the address alone."""
    by_node = [
        (use, names[use.device])
        for use in uses
        if isinstance(use.device, int) and use.device in names
    ]
    with_node = {use.pid for use, _ in by_node}
    by_address = [
        (use, str(address)) for use in uses if use.device == address and use.pid not in with_node
    ]
    return sorted(by_node + by_address, key=lambda found: found[0].pid)


class _People:
    """What is known of processes, each looked up once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._processes: dict[int, procfs.Process] = {}

    def holder(self, pid: int, device: str, how: How) -> Holder:
        """Say who a process is that has a device."""
        process = self._process(pid)
        pod_uid = cgroups.pod_uid(process.cgroups)
        namespace, name = self._pods.get(pod_uid, (None, None)) if pod_uid else (None, None)
        return Holder(
            pid=pid,
            command=process.command,
            device=device,
            how=how,
            user=None if process.uid is None else self._users.get(process.uid, str(process.uid)),
            container=cgroups.container(process.cgroups),
            pod_uid=pod_uid,
            pod_namespace=namespace,
            pod_name=name,
            service=cgroups.service(process.cgroups),
        )

    def _process(self, pid: int) -> procfs.Process:
        if pid not in self._processes:
            self._processes[pid] = procfs.process(self._host.path("/proc"), pid)
        return self._processes[pid]

    @cached_property
    def _users(self) -> dict[int, str]:
        """Return the names in the host's passwd; the first of a number counts."""
        try:
            text = files.read(self._host.path("/etc/passwd")) or ""
        except HostError:
            return {}
        found: dict[int, str] = {}
        for line in text.splitlines():
            match = _USER.match(line)
            if match is not None:
                found.setdefault(int(match[2]), match[1])
        return found

    @cached_property
    def _pods(self) -> dict[str, tuple[str, str]]:
        return cgroups.pod_names(self._host.root)
