"""NVML's child as the agent runs it: GPUs of a fake kernel that are in a mode, and drain.

It refuses what the library refuses: a GPU in persistence mode does not drain, and one that
drains is shown to nobody. The real child is tested on a library of its own, in
``tests/test_nvml.py``.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Final

from kata_gpu.errors import HostError
from tests.kernel.fake import FakeKernel

CHILD: Final = (sys.executable, "-I", "-m", "kata_gpu.host.nvml")


class Nvml:
    """What the driver knows of its GPUs, by address; it forgets one that it lets go."""

    def __init__(self, kernel: FakeKernel, *, persistent: set[str]) -> None:
        kernel.tree.list_nvidia_gpus()
        self._kernel = kernel
        self.persistent = persistent
        self.drained: set[str] = set()
        self.at_work: dict[str, list[int]] = {}
        self.memory_bytes: int | None = None
        self.is_there = True
        self.refused: set[tuple[str, str]] = set()
        """Words and states that end with "Insufficient Permissions"."""
        self.said: list[str] = []
        """Every word that changes something and was taken."""
        self.on_word: Callable[[str], None] = lambda _words: None
        """Called with each word that changes something, before and after it is taken."""

    def run(self, argv: tuple[str, ...]) -> str:
        """Answer as the child does."""
        assert argv[:4] == CHILD, argv
        if not self.is_there:
            return json.dumps({"absent": "NVML Shared Library Not Found"})
        match argv[4:]:
            case ["read", *addresses]:
                return json.dumps({"gpus": {a: self._read(a) for a in self._shown(addresses)}})
            case ["persistence" | "drain" as what, address, "on" | "off" as state]:
                self._require_driver(address)
                self.on_word(f"{what} {state}")
                answer = self._change(what, address, state)
                self.on_word(f"{what} {state}")
                return json.dumps(answer)
            case _:
                raise AssertionError(f"not modelled: run {' '.join(argv)}")

    def _shown(self, addresses: list[str]) -> list[str]:
        return [address for address in addresses if address not in self.drained]

    def _read(self, address: str) -> dict[str, Any]:
        self._require_driver(address)
        return {
            "uuid": f"GPU-{address}",
            "serial": None,
            "persistence": int(address in self.persistent),
            "processes": self.at_work.get(address, []),
            "memory": self.memory_bytes,
        }

    def _change(self, what: str, address: str, state: str) -> dict[str, Any]:
        if (what, state) in self.refused:
            return {"refused": "Insufficient Permissions"}
        if (what, state) == ("drain", "on") and address in self.persistent:
            return {"in_use": "In use by another client"}
        if what == "persistence" and address in self.drained:
            return {"refused": "Not Found"}
        modes = self.persistent if what == "persistence" else self.drained
        (modes.add if state == "on" else modes.discard)(address)
        self.said.append(f"{what} {state}")
        return {"done": True}

    def _require_driver(self, address: str) -> None:
        if self._kernel.link(f"bus/pci/devices/{address}/driver") != "nvidia":
            raise HostError(f"the agent asked NVML about {address}, which it does not have")
