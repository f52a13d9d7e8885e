"""CDI specs of all vendors: Kata's runtimes read them all, and one they refuse stops every pod.

Source: Kata 4.1: its Go runtime has the CDI library 0.6.0, the Rust one 1.1.1; they search
/etc/cdi and /var/run/cdi in opposite order.
"""

from collections.abc import Callable, Iterable
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.node_facts import BrokenCdiFile, CdiFile, NodeFacts, Unknown, UnreadCdiFile
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning

_VERSIONS: Final = tuple(f"0.{minor}.0" for minor in range(1, 7))
"""Those that both runtimes take."""

_SHOWN: Final = 5
_EVERY_POD: Final = "Kata's runtimes read every spec, and one they refuse stops every pod"


def files(facts: NodeFacts) -> Iterable[Answer]:
    """Every spec can be read."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    for file in facts.cdi.files:
        if isinstance(file, UnreadCdiFile):
            yield unknown(Unknown(reason=file.reason))
        elif isinstance(file, BrokenCdiFile):
            yield error(
                f"{file.path}: {file.reason}",
                _EVERY_POD,
                "have it written again by the program it belongs to, or move it away",
            )
    if all(isinstance(file, CdiFile) for file in facts.cdi.files):
        yield ok(f"{len(facts.cdi.files)} specs")


def versions(facts: NodeFacts) -> Iterable[Answer]:
    """Every spec has a version that both of Kata's runtimes know."""

    def judged(file: CdiFile) -> Answer | None:
        if file.version in _VERSIONS:
            return None
        return error(
            f"{file.path} has cdiVersion {file.version}",
            f"Kata's Go runtime knows none after {_VERSIONS[-1]}; {_EVERY_POD}",
            "have it written in version 0.5.0 or 0.6.0, or move it away",
        )

    yield from _each(facts, judged, f"none after {_VERSIONS[-1]}")


def duplicates(facts: NodeFacts) -> Iterable[Answer]:
    """No device is in two specs."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    owners: dict[str, list[str]] = {}
    for file in _sound(facts.cdi.files):
        for device in file.devices:
            owners.setdefault(f"{file.kind}={device}", []).append(file.path)
    twice = {name: paths for name, paths in owners.items() if len(paths) > 1}
    for name, paths in list(twice.items())[:_SHOWN]:
        yield _twice(name, paths)
    if len(twice) > _SHOWN:
        yield info(f"{len(twice) - _SHOWN} more devices are in two specs")
    if not twice:
        yield ok(f"{len(owners)} devices, each in one spec")


def _twice(name: str, paths: list[str]) -> Answer:
    folders = [path.rpartition("/")[0] for path in paths]
    found = f"{name} is in {', '.join(paths)}"
    remedy = "remove it from all but one of them, by the programs they belong to"
    if len(set(folders)) < len(folders):
        return error(found, f"two in one folder are a conflict: {_EVERY_POD}", remedy)
    return warning(found, "Kata's two runtimes do not agree on which of them counts", remedy)


def device_nodes(facts: NodeFacts) -> Iterable[Answer]:
    """Every device node that a spec names exists."""

    def judged(file: CdiFile) -> Answer | None:
        if not file.missing_nodes:
            return None
        shown = ", ".join(file.missing_nodes[:_SHOWN])
        more = len(file.missing_nodes) - _SHOWN
        return warning(
            f"{file.path}: no device at {shown}" + (f" and {more} more" if more > 0 else ""),
            "a pod that asks for such a device does not start",
            "have it written again by the program it belongs to, after devices have moved",
        )

    yield from _each(facts, judged, "all there")


def leftovers(facts: NodeFacts) -> Iterable[Answer]:
    """Nothing but specs lies in the folders."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
    elif facts.cdi.leftovers:
        shown = ", ".join(facts.cdi.leftovers[:_SHOWN])
        yield info(f"{len(facts.cdi.leftovers)} files that no reader takes: {shown}")
    else:
        yield ok("none")


def _each(
    facts: NodeFacts, judged: Callable[[CdiFile], Answer | None], sound: str
) -> Iterable[Answer]:
    """Yield what *judged* has against each file that could be read, or that all are sound."""
    if isinstance(facts.cdi, Unknown):
        yield unknown(facts.cdi)
        return
    found = [answer for answer in map(judged, _sound(facts.cdi.files)) if answer is not None]
    yield from found or [ok(sound)]


def _sound(files: Iterable[CdiFile | BrokenCdiFile | UnreadCdiFile]) -> list[CdiFile]:
    return [file for file in files if isinstance(file, CdiFile)]
