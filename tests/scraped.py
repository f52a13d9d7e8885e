"""An agent that is scraped for the first time: ``python -m tests.scraped``.

It prints which threads imported prometheus_client before the scrape, and which for it.
"""

import importlib.abc
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kata_gpu.agent import daemon
from kata_gpu.observe import client
from tests.kernel import nodes
from tests.passthrough import SETTINGS, TEXT
from tests.running import QUICK, Agent, Events, run, write_blueprint


class Spy(importlib.abc.MetaPathFinder):
    """Finds nothing, and notes who looks."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "prometheus_client":
            is_loop = threading.current_thread() is threading.main_thread()
            self.seen.append("loop" if is_loop else "worker")


def main(root: Path) -> None:
    """Run an agent, and scrape it once."""
    spy = Spy()
    sys.meta_path.insert(0, spy)
    kernel, events = nodes.single_gpu(root), Events()
    kernel.host.path(SETTINGS.blueprint).parent.mkdir(parents=True)
    write_blueprint(kernel, TEXT)

    async def script(agent: Agent) -> None:
        before = [*spy.seen]
        await agent.ask(client.get_text, kernel.host.path(QUICK.socket), daemon.METRICS)
        sys.stdout.write(f"{before} {spy.seen}\n")

    run(kernel, events, script)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
