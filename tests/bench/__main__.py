"""``scripts/bench NAME``: run one benchmark."""

import sys

from tests.bench import bind, imports, inventory, kills, soak

_BENCHMARKS = {
    "inventory": inventory.main,
    "imports": imports.main,
    "bind": bind.main,
    "kills": kills.main,
    "soak": soak.main,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _BENCHMARKS:
        sys.exit(f"usage: scripts/bench {{{','.join(_BENCHMARKS)}}}")
    _BENCHMARKS[sys.argv[1]]()
