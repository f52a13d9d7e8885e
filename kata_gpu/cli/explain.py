"""``kata-gpu explain``: why a device is in the state it is in, and what makes it available."""

import argparse
import sys

from kata_gpu.act.journal import Journal
from kata_gpu.agent import explaining
from kata_gpu.cli import configuration, context, output
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.errors import HostError, UnservedError
from kata_gpu.host import Host
from kata_gpu.model.explanation import Explanation, Said, Unsaid, lines
from kata_gpu.observe import client, said
from kata_gpu.observe.document import document
from kata_gpu.plan import explanation
from kata_gpu.settings.agent import Settings

_ANSWER_TIMEOUT_S = 3.0


def explain(options: argparse.Namespace) -> int:
    """Print the explanation; exit with 3 when the device is not as it should be."""
    if not is_understood(options):
        print(
            "kata-gpu: cannot explain this: name a device (0000:41:00.0), or a pod "
            "(pod NAMESPACE/NAME)",
            file=sys.stderr,
        )
        return ExitCode.USAGE
    host, settings = context.host(options), configuration.settings(options)
    if options.device is None:
        from kata_gpu.cli import explain_pod  # noqa: PLC0415 - for who asks about a pod

        return explain_pod.explain(options, _word(host, settings))
    wanted = configuration.blueprint(options, settings)
    ledger = Journal(host.path(settings.ledger)).ledger
    word = _word(host, settings)
    facts = explaining.look(host, settings, wanted, ledger, options.device, word)
    found = explanation.explain(facts, options.device)
    if options.output in {"json", "yaml"}:
        case = explanation.choose(facts, options.device)
        body = {**document(found), "facts": document(case)}
        print(output.dump(output.printable(body), options.output))
    else:
        _print(found)
    return ExitCode.OK if found.is_in_order else ExitCode.REFUSED


def is_understood(options: argparse.Namespace) -> bool:
    """Tell whether the words name either a device or a pod."""
    return (options.device is None) is (options.pod is not None)


def _word(host: Host, settings: Settings) -> Said | Unsaid:
    """Return what the agent says; that it says nothing is no failure."""
    try:
        answer = client.get(host.path(settings.socket), "/v1/status", timeout_s=_ANSWER_TIMEOUT_S)
    except UnservedError:
        return Unsaid(reason="no agent runs")
    except HostError as error:
        return Unsaid(reason=str(error))
    return said.parse(answer)


def _print(found: Explanation) -> None:
    """Print each line without what a node's strings could do to a terminal."""
    headline, *rest = map(output.printable, lines(found))
    colour = output.STATES.get(found.state or "", "dim")
    print("\n".join([output.coloured(headline, colour), *rest]))
