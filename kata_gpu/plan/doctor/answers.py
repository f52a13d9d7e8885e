"""The words in which every check answers."""

from kata_gpu.model.doctor import Answer, Grade
from kata_gpu.model.node_facts import Unknown


def ok(found: str) -> Answer:
    """It is as it should be."""
    return Answer(grade=Grade.OK, found=found)


def info(found: str) -> Answer:
    """There is nothing to mend."""
    return Answer(grade=Grade.INFO, found=found)


def warning(found: str, why: str, remedy: str) -> Answer:
    """It may not work, or be less safe than it looks."""
    return Answer(grade=Grade.WARNING, found=found, why=why, remedy=remedy)


def error(found: str, why: str, remedy: str) -> Answer:
    """It does not work, or is not safe."""
    return Answer(grade=Grade.ERROR, found=found, why=why, remedy=remedy)


def unknown(fact: Unknown) -> Answer:
    """Nobody can tell, which is never as good as sound."""
    return warning(
        f"unknown: {fact.reason}",
        "what cannot be read cannot be called sound",
        "run it as root on the host, or with --root where the host's file system is mounted",
    )
