"""The files by which the node's other programs learn of the units, and the steps to them."""

from collections.abc import Iterable, Mapping

from kata_gpu.model.blueprint import Blueprint, KataHandler
from kata_gpu.model.inventory import FileContent, Inventory
from kata_gpu.model.plan import Finding, RemoveFile, Severity, Step, WriteFile
from kata_gpu.plan import cdi
from kata_gpu.plan.runtime import wiring
from kata_gpu.plan.wish import Wish

Offers = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Device nodes of each unit, by resource and unit id."""


class Steps:
    """Steps in order, with the files as they will be after the last of them."""

    def __init__(self, files: Iterable[FileContent]) -> None:
        self.steps: list[Step] = []
        self._files = {file.path: file.content for file in files}

    def add(self, step: Step) -> int:
        """Append a step and return its number, counted from 1."""
        self.steps.append(step)
        return len(self.steps)

    def is_so(self, wish: Wish) -> bool:
        """Tell whether the file will be what it should be, without a further step."""
        return wish.stays or self._files.get(wish.path) == wish.content

    def fulfil(self, wish: Wish, needs: tuple[int, ...]) -> None:
        """Add the step that makes a file what it should be, if it is not."""
        if self.is_so(wish):
            return
        now = self._files.get(wish.path)
        self._files[wish.path] = wish.content
        if wish.content is None:
            self.add(RemoveFile(path=wish.path, reason=wish.reason, needs=needs))
            return
        self.add(
            WriteFile(
                path=wish.path,
                staging=wish.staging,
                content=wish.content,
                is_new=now is None,
                reason=wish.reason,
                needs=needs,
            )
        )

    def clear(self, paths: Iterable[str], reason: str, needs: tuple[int, ...] = ()) -> None:
        """Add the removal of every one of *paths* that no step removes yet.

        One that is not there too: what is removed is also forgotten by the ledger.
        """
        removed = {step.path for step in self.steps if isinstance(step, RemoveFile)}
        for path in paths:
            if path not in removed:
                self.add(RemoveFile(path=path, reason=reason, needs=needs))

    def withdraw(
        self, inventory: Inventory, leaving: set[str], cdi_directory: str
    ) -> tuple[int, ...]:
        """Add what takes *leaving* from our CDI specs before their drivers are taken."""
        before = len(self.steps)
        for file in inventory.files if leaving else ():
            if file.content is not None and cdi.is_ours(cdi_directory, file.path):
                wish = Wish(
                    path=file.path,
                    staging=cdi_directory,
                    content=cdi.without(file.content, leaving),
                    reason="no pod may be given a unit that is about to leave",
                )
                self.fulfil(wish, ())
        return tuple(range(before + 1, len(self.steps) + 1))


def wishes(
    blueprint: Blueprint,
    inventory: Inventory,
    offers: Offers,
    passengers: int,
    cdi_directory: str,
) -> tuple[tuple[Wish, ...], tuple[Finding, ...]]:
    """Return the CDI specs and drop-ins as they should be, and what cannot be written.

    *passengers* is how many functions the node passes through in all.
    """
    specs = (
        _spec(kind, offers.get(kind, {}), cdi_directory)
        for kind in dict.fromkeys(p.resource for p in blueprint.pools if p.resource)
    )
    drop_ins, findings = _drop_ins(blueprint, inventory, passengers)
    wired, unwired = wiring.drop_ins(blueprint, inventory.runtimes)
    return (*specs, *drop_ins, *wired), (*findings, *unwired)


def _spec(kind: str, devices: Mapping[str, tuple[str, ...]], cdi_directory: str) -> Wish:
    names = ", ".join(sorted(devices))
    return Wish(
        path=cdi.path(cdi_directory, kind),
        staging=cdi_directory,
        content=cdi.render(kind, devices),
        reason=f"{kind} stands for {names}" if devices else f"nothing is offered as {kind}",
        units=frozenset(devices),
    )


def _drop_ins(
    blueprint: Blueprint, inventory: Inventory, passengers: int
) -> tuple[tuple[Wish, ...], tuple[Finding, ...]]:
    if not blueprint.handlers:
        return (), ()
    from kata_gpu.plan.kata import proposal  # noqa: PLC0415 - a release knows no handler

    found: dict[str, Wish] = {}
    findings: list[Finding] = []
    bases = {base.handler: base for base in inventory.kata}
    files = {file.path: file for file in inventory.configurations}
    for handler in blueprint.handlers:
        base = bases.get(handler.name)
        if base is None or base.drop_in is None or base.directory is None:
            reason = base.reason if base else None
            remedy = "install Kata, or correct the handler's config in the blueprint"
            findings.append(_no_drop_in(handler, reason or "not looked for", remedy))
            continue
        proposed = proposal.propose(
            handler,
            files[base.file or ""],
            passengers,
            iommufd=inventory.platform.iommufd,
            asked=blueprint.asked,
        )
        findings += proposed.findings
        wish = Wish(
            path=base.drop_in,
            staging=base.directory,  # everything in config.d itself is read by new pods
            content=proposed.content,
            reason=f"handler {handler.name} ({handler.runtime}) "
            + ("cold-plugs GPUs by it" if proposed.content else "must not have it as things are"),
            stays=proposed.stays,
        )
        rival = found.get(wish.path)
        if rival is None or rival.content is None:
            found[wish.path] = wish
        elif wish.content not in {None, rival.content}:
            reason = f"{wish.path} is another handler's, with other settings"
            findings.append(_no_drop_in(handler, reason, "give its base file a folder of its own"))
    return tuple(found.values()), tuple(findings)


def _no_drop_in(handler: KataHandler, reason: str, remedy: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        subject=f"handler {handler.name}",
        reason=f"it gets no drop-in: {reason}",
        remedy=remedy,
    )
