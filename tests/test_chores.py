"""What goes on until the agent ends, and ends with it."""

import asyncio
from pathlib import Path
from typing import Final

from kata_gpu.agent import asking
from kata_gpu.agent.chores import Chores
from kata_gpu.errors import HostError
from kata_gpu.host.detour import Detour, Guardian

END_S: Final = 5.0


def test_a_chore_that_fails_on_its_way_out_ends_all_the_same() -> None:
    async def main() -> None:
        chores = Chores()

        async def work() -> None:
            try:
                await chores.go_on()
            finally:
                raise HostError("cannot put it back")

        chores.begin("work", work)
        await asyncio.sleep(0)
        async with asyncio.timeout(END_S):
            await chores.end()
        assert chores.troubles == {"work": "cannot put it back"}

    asyncio.run(main())


def test_nothing_is_begun_while_they_end() -> None:
    async def main() -> None:
        chores = Chores()

        async def first() -> None:
            await chores.go_on()

        async def last() -> None:
            try:
                await chores.go_on()
            finally:
                chores.begin("late", first)

        chores.begin("first", first)
        chores.begin("last", last)
        await asyncio.sleep(0)
        await chores.end()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_an_agent_ends_though_a_file_has_taken_the_place_of_its_link(short_path: Path) -> None:
    way = Detour(
        root=short_path, link="/run/l.sock", through="/run/own.sock", around="/run/kubelet.sock"
    )

    async def main() -> None:
        chores = Chores()
        led = asyncio.Event()

        async def answer() -> None:
            async with asking.answering(Guardian(way), lambda: None):
                led.set()
                await chores.go_on()

        chores.begin("pod resources", answer)
        await led.wait()
        way.at(way.link).unlink()
        way.at(way.link).touch()
        async with asyncio.timeout(END_S):
            await chores.end()
        assert "no symbolic link" in chores.troubles["pod resources"]

    asyncio.run(main())
    assert not way.at(way.through).exists()
