"""What each verb pays before it works, against the bare interpreter."""

import sys

from tests.bench import timing

_ROUNDS = 15


def main() -> None:
    """Print the median start of each verb's imports, in milliseconds."""
    verbs = ("inventory", "doctor", "status", "explain", "clear", "change", "kata", "run")
    commands = {"(interpreter)": [sys.executable, "-c", "pass"]}
    commands |= {
        verb: [sys.executable, "-c", f"import kata_gpu.cli, kata_gpu.cli.{verb}"] for verb in verbs
    }
    for name, times_s in timing.in_turn(commands, rounds=_ROUNDS).items():
        print(f"{name:15} {timing.median_ms(times_s):7.1f} ms")
