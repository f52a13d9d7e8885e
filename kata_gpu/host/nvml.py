"""NVIDIA's management library, asked by a child that ends before its answer is used.

A handle in this process would keep the GPU busy, and an unbind of a busy GPU never ends.
The child (this module, run) attaches to the GPUs it is asked about and to no other, and
only to those that NVIDIA's driver lists: nothing is loaded or made by asking.

Source: NVIDIA, NVML API Reference Guide.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from kata_gpu.errors import HeldError, HostError
from kata_gpu.host import Host
from kata_gpu.model.pci import PciAddress

_TIMEOUT_S: Final = 30.0  # a GPU without persistence mode is started first
_MODULE: Final = "kata_gpu.host.nvml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What NVML says of one GPU; None for what its driver does not tell."""

    uuid: str | None
    serial: str | None
    persistence: bool | None
    """Whether the driver keeps the GPU started while nobody uses it."""

    processes: tuple[int, ...]
    """Those that have work on it, in compute or graphics."""

    memory_bytes: int | None = None


def read(host: Host, addresses: Iterable[PciAddress]) -> dict[PciAddress, Gpu] | None:
    """Return NVML's word on those GPUs that NVIDIA's driver has; None when there is no NVML.

    A GPU that the driver has lost is left out.

    Raises:
        HostError: NVML is there and refuses, or does not answer in time.
    """
    known = [address for address in addresses if _is_listed(host, address)]
    if not known:
        return {}
    answer = _ask(host, "read", *map(str, known))
    match answer:
        case {"absent": _}:
            return None
        case {"gpus": dict() as gpus}:
            return {a: _gpu(gpus[str(a)]) for a in known if str(a) in gpus}
        case _:
            raise _refusal("read GPUs", answer)


def set_persistence(host: Host, address: PciAddress, *, on: bool) -> bool:
    """Let the driver keep a GPU started, or not; idempotent.

    Return False where there is no such thing: no NVML, not this driver's GPU, or one that
    knows no persistence mode.

    Raises:
        HostError: NVML is there and refuses, or does not answer in time.
    """
    return _change(host, "persistence", address, on=on)


def set_drain(host: Host, address: PciAddress, *, on: bool) -> bool:
    """Let the driver refuse new users of a GPU, or no longer; persistence must be off first.

    Return False where there is no such thing: no NVML, not this driver's GPU, or one that
    cannot be drained.

    Raises:
        HeldError: somebody uses it.
        HostError: NVML is there and refuses, or does not answer in time.
    """
    return _change(host, "drain", address, on=on)


def _is_listed(host: Host, address: PciAddress) -> bool:
    return os.path.exists(host.path(f"/proc/driver/nvidia/gpus/{address}"))


def _change(host: Host, what: str, address: PciAddress, *, on: bool) -> bool:
    if not _is_listed(host, address):
        return False
    state = "on" if on else "off"
    answer = _ask(host, what, str(address), state)
    match answer:
        case {"done": True}:
            return True
        case {"absent": _} | {"unsupported": _}:
            return False
        case _:
            raise _refusal(f"switch {what} {state} for {address}", answer)


def _ask(host: Host, *words: str) -> dict[str, Any]:
    argv = (sys.executable, "-I", "-m", _MODULE, *words)
    try:
        answer = json.loads(host.run(argv, timeout_s=_TIMEOUT_S))
    except ValueError as error:
        raise HostError(f"cannot read NVML's answer to {' '.join(words)}: {error}") from error
    if not isinstance(answer, dict):
        raise HostError(f"cannot read NVML's answer to {' '.join(words)}: {answer!r}")
    return answer


def _gpu(fields: dict[str, Any]) -> Gpu:
    return Gpu(
        uuid=fields["uuid"],
        serial=fields["serial"],
        persistence=None if fields["persistence"] is None else bool(fields["persistence"]),
        processes=tuple(sorted(pid for pid in fields["processes"] if pid > 0)),
        memory_bytes=fields["memory"] or None,
    )


def _refusal(what: str, answer: dict[str, Any]) -> HostError | HeldError:
    """Return the error for an answer that is none of those hoped for."""
    match answer:
        case {"in_use": str(said)}:
            return HeldError(f"cannot {what}: NVML says {said}; end its users first")
        case {"refused": str(said)}:
            return HostError(f"cannot {what}: NVML says {said}")
        case _:
            return HostError(f"cannot {what}: NVML's answer is {answer!r}")


# the child


def main(words: list[str]) -> dict[str, Any]:
    """Do what *words* say and return the answer; it holds GPUs until the process ends."""
    import pynvml  # noqa: PLC0415 - 8,000 lines that only the child needs

    absent = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,  # until the driver is loaded anew
    }
    try:
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS | pynvml.NVML_INIT_FLAG_NO_ATTACH)
        match words:
            case ["read", *addresses]:
                return {"gpus": _read_all(pynvml, addresses)}
            case ["persistence", address, state]:
                handle = pynvml.nvmlDeviceGetHandleByPciBusId(address.encode())
                pynvml.nvmlDeviceSetPersistenceMode(handle, int(state == "on"))
            case ["drain", address, state]:
                info = _pci_info(pynvml, PciAddress.parse(address))
                pynvml.nvmlDeviceModifyDrainState(info, int(state == "on"))
            case _:
                return {"refused": f"no such words: {words}"}
    except pynvml.NVMLError as error:
        if error.value in absent:
            return {"absent": str(error)}
        kinds = {
            pynvml.NVML_ERROR_IN_USE: "in_use",
            pynvml.NVML_ERROR_NOT_SUPPORTED: "unsupported",
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "unsupported",
        }
        return {kinds.get(error.value, "refused"): str(error)}
    return {"done": True}


def _read_all(pynvml: Any, addresses: list[str]) -> dict[str, Any]:
    lost = {
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
    found = {}
    for address in addresses:
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(address.encode())
            found[address] = _read_one(pynvml, handle)
        except pynvml.NVMLError as error:
            if error.value not in lost:
                raise
    return found


def _read_one(pynvml: Any, handle: Any) -> dict[str, Any]:
    untold = {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
    }

    def told(ask: Callable[[Any], Any]) -> Any:
        try:
            return ask(handle)
        except pynvml.NVMLError as error:
            if error.value in untold:
                return None
            raise

    compute = told(pynvml.nvmlDeviceGetComputeRunningProcesses) or []
    graphics = told(pynvml.nvmlDeviceGetGraphicsRunningProcesses) or []
    return {
        "uuid": told(pynvml.nvmlDeviceGetUUID),
        "serial": told(pynvml.nvmlDeviceGetSerial),
        "persistence": told(pynvml.nvmlDeviceGetPersistenceMode),
        "processes": sorted({process.pid for process in (*compute, *graphics)}),
        "memory": told(lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
    }


def _pci_info(pynvml: Any, address: PciAddress) -> Any:
    """Return the address as drain takes it, which attaches to no GPU."""
    bus_id = f"{address.domain:08X}:{address.bus:02X}:{address.device:02X}.{address.function}"
    return pynvml.nvmlPciInfo_t(
        domain=address.domain, bus=address.bus, device=address.device, busId=bus_id.encode()
    )


if __name__ == "__main__":
    json.dump(main(sys.argv[1:]), sys.stdout)
