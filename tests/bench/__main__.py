"""``scripts/bench NAME``: run one benchmark."""

import sys

from tests.bench import imports, inventory

_BENCHMARKS = {"inventory": inventory.main, "imports": imports.main}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _BENCHMARKS:
        sys.exit(f"usage: scripts/bench {{{','.join(_BENCHMARKS)}}}")
    _BENCHMARKS[sys.argv[1]]()
