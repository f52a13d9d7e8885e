"""An agent that leads a path through itself, to be killed: ``python -m tests.detoured``.

It answers on its socket with a word, or with ``--grpc`` as kubelet's PodResources server does.
"""

import asyncio
import socket
import sys
from pathlib import Path

from kata_gpu.host.detour import Detour, Guardian


def main(link: str, through: str, around: str, *flags: str) -> None:
    """Serve until killed, or until standard input ends."""
    detour = Detour(root=Path("/"), link=link, through=through, around=around)
    guardian = Guardian(detour)
    pid = guardian.start()
    if "--grpc" in flags:
        asyncio.run(_proxy(detour, pid))
    else:
        _answer(detour, pid)
    detour.close()
    guardian.stop()


def _ready(detour: Detour, pid: int) -> None:
    detour.settle()
    detour.open()
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()


def _answer(detour: Detour, pid: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(detour.through)
        listener.listen()
        _ready(detour, pid)
        sys.stdin.read()


async def _proxy(detour: Detour, pid: int) -> None:
    from kata_gpu.publish.kubelet import pod_resources  # noqa: PLC0415 - grpc is for who asks
    from tests.pods import OURS  # noqa: PLC0415

    around, through = Path(detour.around), Path(detour.through)
    async with pod_resources.serve(through, around, lambda: OURS):
        _ready(detour, pid)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    main(*sys.argv[1:])
