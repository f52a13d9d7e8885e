"""An agent that leads a path through itself, to be killed: ``python -m tests.detoured``.

It answers on its socket with a word, or with ``--grpc`` as kubelet's PodResources server does.
"""

import asyncio
import socket
import sys
from pathlib import Path

from kata_gpu.agent import asking
from kata_gpu.host.detour import Detour, Guardian


def main(link: str, through: str, around: str, *flags: str) -> None:
    """Serve until killed, or until standard input ends."""
    detour = Detour(root=Path("/"), link=link, through=through, around=around)
    with asking.guarded(detour) as guardian:
        if "--grpc" in flags:
            asyncio.run(_proxy(guardian))
        else:
            _answer(guardian)


def _ready(pid: int | None) -> None:
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()


def _answer(guardian: Guardian) -> None:
    detour = guardian.detour
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(detour.through)
        listener.listen()
        detour.settle()
        detour.open()
        _ready(guardian.pid)
        sys.stdin.read()
        detour.close()


async def _proxy(guardian: Guardian) -> None:
    from tests.pods import OURS  # noqa: PLC0415 - grpc is for who asks

    async with asking.answering(guardian, lambda: OURS):
        _ready(guardian.pid)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    main(*sys.argv[1:])
