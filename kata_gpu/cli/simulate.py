"""``kata-gpu simulate``: would Kubernetes place these pods, and if not, what is in the way?"""

import argparse
import resource
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Never

from kata_gpu.cli import output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.model.blueprint import Blueprint
from kata_gpu.plan.simulate import telling
from kata_gpu.plan.simulate.answer import Answer, Given, PodAnswer, Verdict
from kata_gpu.plan.simulate.simulation import simulate as answer_for
from kata_gpu.plan.simulate.values import Scenario
from kata_gpu.settings import manifests
from kata_gpu.settings.manifests import documents, snapshot
from kata_gpu.settings.manifests.documents import Document

_MEMORY_MAX_BYTES: Final = 4 << 30
_CPU_MAX_S: Final = 600
_RESOURCES: Final = "/apis/resource.k8s.io/v1"
_SLICES: Final = f"{_RESOURCES}/resourceslices"
_COLLECTIONS: Final = (
    "/api/v1/nodes",
    "/api/v1/pods",
    _SLICES,
    f"{_RESOURCES}/deviceclasses",
    f"{_RESOURCES}/devicetaintrules",
    f"{_RESOURCES}/resourceclaims",
    f"{_RESOURCES}/resourceclaimtemplates",
    "/apis/node.k8s.io/v1/runtimeclasses",
    "/apis/scheduling.run.ai/v2/queues",
    "/apis/scheduling.run.ai/v2alpha2/podgroups",
)
_COLOURS: Final = {
    Verdict.PLACED: "good",
    Verdict.REFUSED: "bad",
    Verdict.UNDECIDED: "doubtful",
}
_QUEUES: Final = ("QUEUE", "CPU", "MEMORY", "GPU", "DOMINANT", "VERDICT")
_SHOWN: Final = 4


def simulate(options: argparse.Namespace) -> int:
    """Print what becomes of each pod; exit with 3 when one is not placed."""
    _limit()
    try:
        return _simulate(options)
    except MemoryError as error:
        raise InvalidBlueprint(
            f"cannot simulate: it takes more than {output.size(_MEMORY_MAX_BYTES)} of memory; ask "
            "about fewer pods or nodes, or look for an expression that puts together long texts"
        ) from error


def _simulate(options: argparse.Namespace) -> int:
    found = answer_for(_scenario(options))
    if options.output in {"json", "yaml"}:
        from kata_gpu.observe.document import document  # noqa: PLC0415 - for these alone

        print(output.dump(output.printable(document(found)), options.output))
    else:
        print("\n".join(text(found, is_wide=options.output == "wide")))
    return ExitCode.OK if found.is_placed else ExitCode.REFUSED


def _limit() -> None:
    """Bound what hostile files can take: the library bounds no text that an expression makes."""
    for what, most in ((resource.RLIMIT_AS, _MEMORY_MAX_BYTES), (resource.RLIMIT_CPU, _CPU_MAX_S)):
        soft, hard = resource.getrlimit(what)
        bounds = [limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(what, (min(bounds), hard))
    seconds, _ = resource.getrlimit(resource.RLIMIT_CPU)  # the kernel moves it when it is over
    signal.signal(signal.SIGXCPU, lambda *_: _end(seconds))


def _end(seconds: int) -> Never:
    """End a simulation that has had its time; the kernel says so once a second from then on."""
    raise InvalidBlueprint(
        f"cannot simulate: it takes more than {seconds} seconds of CPU; ask about fewer pods or "
        "nodes, or for fewer devices in one claim"
    )


def _scenario(options: argparse.Namespace) -> Scenario:
    given: list[Document] = []
    nodes: list[Document] = []
    snapshots: list[tuple[Document, str]] = []
    for paths, objects in ((options.files, given), (options.inventory, nodes)):
        for path in paths:
            for document in documents.read(path):
                if snapshot.is_snapshot(document):
                    snapshots.append((document, path.stem))
                else:
                    objects.append(document)
    if options.cluster:
        nodes += _of_cluster([*given, *nodes])
    return manifests.scenario(given, snapshots, _blueprint(options.blueprint), nodes)


def _blueprint(path: Path | None) -> Blueprint | None:
    if path is None:
        return None
    from kata_gpu.settings import blueprint  # noqa: PLC0415 - for who names one

    return blueprint.load(path)


def _of_cluster(given: Iterable[Document]) -> Iterator[Document]:
    """Yield what the cluster has; what the files say of the same object holds instead."""
    from kata_gpu.publish.kubernetes import cluster  # noqa: PLC0415 - a large library

    said = {_identity(document) for document in given}
    with cluster.connected() as server:
        for path in _COLLECTIONS:
            found = server.list_all(path)
            if found is None and path == _SLICES:
                raise HostError(
                    f"cannot simulate on this cluster: it has no {path}, as Kubernetes 1.34 has"
                )
            for tree in found or ():
                document = Document(f"cluster {path}", tree)
                if _identity(document) not in said and _counts(tree):
                    yield document


def _identity(document: Document) -> tuple[str, str, str]:
    tree = document.tree
    metadata = tree.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    namespace = str(metadata.get("namespace", "default"))
    return str(tree.get("kind")), namespace, str(metadata.get("name"))


def _counts(tree: dict[str, object]) -> bool:
    """Tell whether it has to do with the question: pods that wait have not."""
    spec = tree.get("spec")
    return tree.get("kind") != "Pod" or (isinstance(spec, dict) and bool(spec.get("nodeName")))


def text(found: Answer, *, is_wide: bool) -> Iterator[str]:
    """Yield the lines that people read."""
    if found.pods:
        header = ("POD", "VERDICT", "NODE", "DEVICES")
        rows = [_row(pod, is_wide=is_wide) for pod in found.pods]
        yield output.table(header, map(output.printable, rows))
    else:
        yield "nothing to place: the files name no pod without a node, and no claim without devices"
    if found.queues:
        yield ""
        rows = [
            [
                queue.queue,
                *(_share(queue.used, queue.shares, name) for name in ("cpu", "memory", "gpu")),
                queue.dominant,
                queue.verdict,
            ]
            for queue in found.queues
        ]
        yield output.table(_QUEUES, map(output.printable, rows))
    told = list(telling.lines(found, is_wide=is_wide))
    yield from ["", *map(output.printable, told)] if told else []
    notes = [f"note: {note}" for note in found.notes]
    yield from ["", *map(output.printable, notes)] if notes else []


def _row(pod: PodAnswer, *, is_wide: bool) -> list[object]:
    name = f"claim {pod.pod}" if pod.is_claim else pod.pod
    verdict = output.Tinted(pod.verdict.value, _COLOURS[pod.verdict])
    return [name, verdict, pod.node, _devices(pod.devices, is_wide=is_wide)]


def _devices(given: Iterable[Given], *, is_wide: bool) -> str:
    names = [
        f"{g.request}={g.device.driver}/{g.device.name}" if is_wide else g.device.name
        for g in given
    ]
    if is_wide or len(names) <= _SHOWN:
        return " ".join(names)
    return f"{' '.join(names[: _SHOWN - 1])} and {len(names) - _SHOWN + 1} more"


def _share(used: Mapping[str, float], shares: Mapping[str, float], name: str) -> str:
    amount = used.get(name, 0.0)
    shown = output.size(int(amount)) if name == "memory" else f"{amount:g}"
    return f"{shown} ({shares[name]:.0%})" if name in shares else shown
