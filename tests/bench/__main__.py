"""``scripts/bench NAME``: run one benchmark."""

import sys
from collections.abc import Callable

from tests.bench import (
    agents,
    bind,
    cdi,
    dra,
    faults,
    imports,
    inventory,
    kata,
    kills,
    kubelet,
    lanes,
    soak,
)

_BENCHMARKS: dict[str, Callable[..., None]] = {
    "agents": agents.main,
    "inventory": inventory.main,
    "imports": imports.main,
    "kata": kata.main,
    "bind": bind.main,
    "cdi": cdi.main,
    "dra": dra.main,
    "kills": kills.main,
    "kubelet": kubelet.main,
    "soak": soak.main,
    "faults": faults.main,
    "lanes": lanes.main,
}
_OPTIONS = {"faults": ["--write"]}

if __name__ == "__main__":
    name, *options = sys.argv[1:] or [""]
    if name not in _BENCHMARKS or not set(options) <= set(_OPTIONS.get(name, ())):
        sys.exit(f"usage: scripts/bench {{{','.join(_BENCHMARKS)}}}")
    _BENCHMARKS[name](*options)
