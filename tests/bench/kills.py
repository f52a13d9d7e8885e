"""How many moments there are at which an agent may be killed, and how many it survives."""

from tests.bench import lab


def main() -> None:
    """Print a row for each work on each kind of unit, on the lab's kernel."""
    print("| where | what is killed | points | survived |\n|---|---|---|---|")
    for topology in ("single", "card", "bridge", "sriov"):
        lab.run(topology, "-m", "tests.kills", timeout_s=900)
