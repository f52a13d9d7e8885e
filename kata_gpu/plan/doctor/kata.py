"""Kata's configuration: what a runtime refuses in a base file or beside it stops every pod.

Files of others are named with what to do, and never changed.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from kata_gpu.model.doctor import Answer
from kata_gpu.model.kata import Effective, InstalledFile
from kata_gpu.model.node_facts import NodeFacts, Unknown
from kata_gpu.plan.doctor.answers import error, info, ok, unknown, warning
from kata_gpu.plan.kata import handlers

_SHOWN: Final = 5
_MEND: Final = "mend that file, or move it away; kata-gpu kata show {name} tells what counts"


def configuration(facts: NodeFacts) -> Iterable[Answer]:
    """Every handler's runtime takes its base file and all that is in config.d."""
    if isinstance(facts.kata, Unknown):
        yield unknown(facts.kata)
        return
    found = _judged(facts.kata)
    for file, effective in found:
        faults = effective.fatal
        for fault in faults[:_SHOWN]:
            why = f"the {effective.runtime} runtime starts no pod of handler {file.name} with it"
            say = warning if file.declared is None else error
            yield say(str(fault), why, _MEND.format(name=file.name))
        if len(faults) > _SHOWN:
            yield info(f"{len(faults) - _SHOWN} more in the files of handler {file.name}")
    if not any(effective.fatal for _, effective in found):
        yield ok(f"{len(found)} handlers that are in the blueprint or were changed")


def drop_ins(facts: NodeFacts) -> Iterable[Answer]:
    """Nothing in config.d is ignored, changed, or there by mistake."""
    if isinstance(facts.kata, Unknown):
        yield unknown(facts.kata)
        return
    count = 0
    for file, effective in _judged(facts.kata):
        base = file.configuration.path
        faults = [f for f in effective.faults if not f.is_fatal and f.file != base]
        count += len(faults)
        for fault in faults[:_SHOWN]:
            yield warning(
                str(fault),
                f"handler {file.name} ({effective.runtime}) does not do what the file says",
                _MEND.format(name=file.name),
            )
        if len(faults) > _SHOWN:
            yield info(f"{len(faults) - _SHOWN} more beside the base file of handler {file.name}")
    if count == 0:
        yield ok("nothing but what is heeded")


@lru_cache(maxsize=1)  # two checks ask for the same
def _judged(files: tuple[InstalledFile, ...]) -> tuple[tuple[InstalledFile, Effective], ...]:
    return tuple((file, handlers.merged(file)) for file in files)
