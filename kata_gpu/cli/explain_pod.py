"""``kata-gpu explain pod NAMESPACE/NAME``: why a pod does not get its GPU."""

import argparse
from typing import Final

from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.discover import cdi, pods
from kata_gpu.errors import KataGpuError
from kata_gpu.host import Host
from kata_gpu.model.blueprint import KataHandler
from kata_gpu.model.explanation import PodExplanation, Said, Unsaid, lines
from kata_gpu.model.pod import PodFacts
from kata_gpu.observe.document import document
from kata_gpu.plan import pods as explaining
from kata_gpu.settings.agent import Settings

_SOCKET: Final = "/pod-resources/kubelet.sock"


def explain(options: argparse.Namespace, word: Said | Unsaid) -> int:
    """Print the explanation; exit with 3 when something keeps the pod from its devices."""
    host, settings = context.host(options), configuration.settings(options)
    namespace, name = options.pod
    facts = look(host, settings, namespace, name, _handlers(options, settings), word)
    found = explaining.explain(facts)
    if options.output in {"json", "yaml"}:
        body = document(found)
        print(output.dump(output.printable(body), options.output))
    else:
        _print(found)
    return ExitCode.OK if found.is_in_order else ExitCode.REFUSED


def look(
    host: Host,
    settings: Settings,
    namespace: str,
    name: str,
    handlers: tuple[KataHandler, ...],
    word: Said | Unsaid,
) -> PodFacts:
    """Return what the node knows of a pod; what cannot be read is unknown in it."""
    uids, kubelet = pods.uids(host, namespace, name), _kubelet(handlers, settings)
    return PodFacts(
        namespace=namespace,
        name=name,
        uids=uids,
        allocations=pods.allocations(host, kubelet),
        claims=pods.claims(host, kubelet),
        lines=pods.journal(host, namespace, name, uids),
        specs=cdi.read(host, settings.cdi_directory),
        handlers=handlers,
        said=word,
    )


def _kubelet(handlers: tuple[KataHandler, ...], settings: Settings) -> str:
    """Return kubelet's directory, by the socket that Kata asks; distributions move it."""
    sockets = (*(h.pod_resource_api_sock or "" for h in handlers), settings.pod_resources.kubelet)
    found = (path.removesuffix(_SOCKET) for path in sockets if path.endswith(_SOCKET))
    return next(found, pods.KUBELET)


def _handlers(options: argparse.Namespace, settings: Settings) -> tuple[KataHandler, ...]:
    """Return the blueprint's handlers; a pod is explained without them, too."""
    try:
        return configuration.blueprint(options, settings).handlers
    except KataGpuError:
        if options.blueprint is not None:
            raise
        return ()


def _print(found: PodExplanation) -> None:
    headline, *rest = map(output.printable, lines(found))
    colour = "good" if found.is_in_order else "bad"
    print("\n".join([output.coloured(headline, colour), *rest]))
