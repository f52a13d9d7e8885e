"""The labels of this node: what a RuntimeClass selects on, and what people look for.

All of them are always there, so that a selector tells "no" from "nobody said".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kata_gpu.model.blueprint import Blueprint, Mode
from kata_gpu.model.confidential import CcMode
from kata_gpu.model.kubernetes import Device
from kata_gpu.model.ledger import Ledger
from kata_gpu.model.pci import NVIDIA, PciAddress, PciFunction
from kata_gpu.model.platform import Tee
from kata_gpu.model.report import NodeState
from kata_gpu.model.unit import UnitState
from kata_gpu.plan.kubernetes.names import label_value
from kata_gpu.plan.runtime.classes import READY

COUNT: Final = "kata-gpu.io/gpu.count"
PRODUCT: Final = "kata-gpu.io/gpu.product"
BLUEPRINT: Final = "kata-gpu.io/blueprint"
CC_MODE: Final = "nvidia.com/cc.mode.state"
CC_READY: Final = "nvidia.com/cc.ready.state"
_TEES: Final = {"snp": Tee.SEV_SNP, "tdx": Tee.TDX}
KEYS: Final = (READY, *(f"kata-gpu.io/{word}.ready" for word in _TEES), COUNT, PRODUCT, BLUEPRINT)
"""Those that no other program sets: which of NVIDIA's are ours nobody can tell by their names."""

_MIXED: Final = "mixed"
_USABLE: Final = frozenset({UnitState.AVAILABLE, UnitState.IN_USE})
_CC_READY: Final = {CcMode.ON: "true", CcMode.PPCIE: "true", CcMode.OFF: "false"}
_SHORT_NAME: Final = re.compile(r".*\[(.+)\]")


def labels(
    state: NodeState,
    blueprint: Blueprint,
    functions: Mapping[PciAddress, PciFunction],
    devices: Sequence[Device],
    cc_mode: CcMode | None = None,
) -> dict[str, str]:
    """Return every label of ours, by key.

    *cc_mode* is the mode in which all NVIDIA GPUs of the node are; None where nobody knows.
    """
    is_usable = any(unit.state in _USABLE for unit in state.units)
    is_ready = (is_usable or any(device.is_healthy for device in devices)) and _is_wired(
        state, blueprint, (handler.name for handler in blueprint.handlers)
    )
    gpus = _gpus(state, blueprint, functions)
    found = {
        READY: _word(is_ready),
        COUNT: str(len(gpus)),
        PRODUCT: _product(gpus),
        BLUEPRINT: label_value(blueprint.version),
    }
    for word, tee in _TEES.items():
        handlers = [handler.name for handler in blueprint.handlers if handler.tee == word]
        is_possible = tee in state.platform.tees and state.platform.iommufd
        is_for_us = bool(handlers) or not blueprint.handlers
        is_wired = is_for_us and _is_wired(state, blueprint, handlers)
        found[f"kata-gpu.io/{word}.ready"] = _word(is_ready and is_possible and is_wired)
    if cc_mode is not None:
        found |= {CC_MODE: label_value(cc_mode), CC_READY: _CC_READY.get(cc_mode, "")}
    return found


def cc_mode(functions: Iterable[PciFunction], ledger: Ledger) -> CcMode | None:
    """Return the confidential mode of all NVIDIA GPUs of the node; None unless all are known.

    One that is not ours is not known, and one without such a mode has none.
    """
    found: set[CcMode | None] = set()
    for function in functions:
        if function.is_gpu and function.vendor == NVIDIA and function.parent is None:
            entry = ledger.owner(function.address)
            found.add(None if entry is None else entry.cc_mode)
    return found.pop() if len(found) == 1 else None


def _is_wired(state: NodeState, blueprint: Blueprint, names: Iterable[str]) -> bool:
    """Tell whether a handler of these is there to run a VM; without any, Kata is not our matter."""
    sound = {base.handler for base in state.kata if base.reason is None}
    return not blueprint.handlers or bool(sound & set(names))


def _word(value: bool) -> str:
    return "true" if value else "false"


def _gpus(
    state: NodeState, blueprint: Blueprint, functions: Mapping[PciAddress, PciFunction]
) -> list[PciFunction]:
    """Return the GPUs that pods may get, be they free, in use or broken."""
    ours = {pool.name for pool in blueprint.pools if pool.mode is Mode.PASSTHROUGH}
    members = [f.address for unit in state.units if unit.pool in ours for f in unit.functions]
    found = [functions[address] for address in members if address in functions]
    return [function for function in found if function.is_gpu]


def _product(gpus: Iterable[PciFunction]) -> str:
    names = {_name(gpu) for gpu in gpus}
    return names.pop() if len(names) == 1 else _MIXED if names else ""


def _name(gpu: PciFunction) -> str:
    """Return what a GPU is sold as, ``H100-SXM5-80GB``, or its ids where nobody knows."""
    name = gpu.product_name or ""
    match = _SHORT_NAME.fullmatch(name)
    ids = f"{gpu.identity.vendor:04x}-{gpu.identity.device:04x}"
    return label_value(match[1] if match else name) or ids
