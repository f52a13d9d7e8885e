"""What is said of what Kubernetes was told: in a plan, when it is taken back, and what is left."""

import sys

from kata_gpu.agent.withdrawal import Withdrawal
from kata_gpu.cli import output


def show(found: Withdrawal) -> None:
    """Print what would be taken back, beneath a plan."""
    for item in found.items:
        print(output.printable(f"withdraw {item}"))


def report(done: Withdrawal) -> None:
    """Print what was taken back, and what was not."""
    for item in () if done.troubles else done.items:
        print(output.printable(f"withdrew {item}"))
    lament(done)


def lament(found: Withdrawal) -> None:
    """Say what may be left, and what removes it; nothing where all is known."""
    for trouble in filter(None, (*found.troubles, found.doubt)):
        print(output.printable(f"kata-gpu: {trouble}"), file=sys.stderr)
    if found.commands:
        print("what removes it:", file=sys.stderr)
    for command in found.commands:
        print(output.printable(f"  {command}"), file=sys.stderr)
