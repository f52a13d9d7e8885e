"""Ask before anything is changed."""

import sys

from kata_gpu.errors import HostError


def agreed(question: str, *, yes: bool) -> bool:
    """Ask on the terminal, unless *yes* was said already; HostError without a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise HostError("cannot ask for consent: standard input is no terminal; say --yes")
    if _ask(f"{question} [y/N] ").strip().lower() in {"y", "yes"}:
        return True
    print("nothing was changed")
    return False


def _ask(question: str) -> str:
    """Return the answer; none when the terminal ends instead."""
    try:
        return input(question)
    except EOFError:
        print()
        return ""
