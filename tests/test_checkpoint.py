"""The checkpoint says whose a device is, and never anything that nobody wrote."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from kata_gpu.errors import HeldError, HostError, KataGpuError
from kata_gpu.host import locks
from kata_gpu.publish.kubelet.checkpoint import Change, Checkpoint, CheckpointError
from kata_gpu.publish.kubelet.prepared import (
    ClaimName,
    Claims,
    PreparedClaim,
    PreparedDevice,
    Progress,
)

BOOT: Final = "0f6d2e1c"


def prepared(uid: str, unit: str = "0000:41:00.0") -> PreparedClaim:
    return PreparedClaim(
        claim=ClaimName(namespace="tenants", name=f"claim-{uid}", uid=uid),
        progress=Progress.COMPLETED,
        owner="agent-a",
        is_brought=True,
        devices=(
            PreparedDevice(
                requests=("gpu/big",),
                pool="node-1",
                device=unit.replace(":", "-").replace(".", "-"),
                units=(unit,),
                cdi_names=(f"nvidia.com/pgpu={unit}",),
            ),
        ),
    )


def adding(claim: PreparedClaim) -> Change:
    return lambda claims: {**claims, claim.claim.uid: claim}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plugins/driver/checkpoint.json"


def using(path: Path, use: Callable[[Checkpoint], Awaitable[Any]], boot: str = BOOT) -> Any:
    """Let *use* have a checkpoint, as an agent does from its start to its end."""

    async def main() -> Any:
        checkpoint = Checkpoint(path, boot_id=boot, timeout_s=0.3)
        try:
            return await use(checkpoint)
        finally:
            await checkpoint.close()

    return asyncio.run(main())


def write(path: Path, *uids: str) -> None:
    async def use(checkpoint: Checkpoint) -> None:
        for uid in uids:
            await checkpoint.update(adding(prepared(uid)))

    using(path, use)


def claims(path: Path, boot: str = BOOT) -> Claims:
    return Checkpoint(path, boot_id=boot).claims()


# What is kept


def test_there_are_no_claims_without_a_file(path: Path) -> None:
    assert claims(path) == {}
    assert not path.exists()


def test_another_agent_reads_what_one_wrote(path: Path) -> None:
    write(path, "u-1", "u-2")
    assert claims(path) == {"u-1": prepared("u-1"), "u-2": prepared("u-2")}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_change_by_another_agent_is_seen_at_once(path: Path) -> None:
    ours = Checkpoint(path, boot_id=BOOT)
    assert ours.claims() == {}
    write(path, "u-1")
    assert list(ours.claims()) == ["u-1"]
    write(path, "u-2")
    assert list(ours.claims()) == ["u-1", "u-2"]
    path.unlink()
    assert ours.claims() == {}


def test_a_change_is_made_to_what_others_wrote_meanwhile(path: Path) -> None:
    async def use(checkpoint: Checkpoint) -> Claims:
        await checkpoint.update(adding(prepared("u-1")))
        await asyncio.to_thread(write, path, "u-2")
        return await checkpoint.update(adding(prepared("u-3")))

    assert list(using(path, use)) == ["u-1", "u-2", "u-3"]


def test_what_was_prepared_before_the_boot_is_void(path: Path) -> None:
    write(path, "u-1")
    assert claims(path, boot="another") == {}

    async def use(checkpoint: Checkpoint) -> None:
        await checkpoint.update(adding(prepared("u-2")))

    using(path, use, boot="another")
    assert list(claims(path, boot="another")) == ["u-2"]
    assert claims(path) == {}


def test_changes_that_are_asked_for_at_once_are_written_at_once(path: Path) -> None:
    inodes = set()

    async def use(checkpoint: Checkpoint) -> None:
        async def one(uid: str) -> None:
            await checkpoint.update(adding(prepared(uid)))
            inodes.add(path.stat().st_ino)

        await asyncio.gather(*(one(f"u-{n}") for n in range(64)))

    using(path, use)
    assert len(claims(path)) == 64
    assert len(inodes) <= 2


def test_a_change_that_is_refused_does_not_hold_up_the_others(path: Path) -> None:
    def refuse(_: Claims) -> Claims:
        raise HeldError("cannot: it is another's")

    async def use(checkpoint: Checkpoint) -> list[Any]:
        changes = (adding(prepared("u-1")), refuse, adding(prepared("u-2")))
        return list(await asyncio.gather(*map(checkpoint.update, changes), return_exceptions=True))

    first, second, third = using(path, use)
    assert list(first) == ["u-1"]
    assert isinstance(second, HeldError)
    assert list(third) == ["u-1", "u-2"]


def test_a_change_with_a_bug_is_an_error_to_who_asked_for_it(path: Path) -> None:
    def change(_claims: Claims) -> Claims:
        raise ZeroDivisionError

    async def main() -> None:
        checkpoint = Checkpoint(path, boot_id=BOOT)
        with pytest.raises(KataGpuError, match="ZeroDivisionError"):
            async with asyncio.timeout(5):
                await checkpoint.update(change)
        await checkpoint.update(adding(prepared("1")))
        await checkpoint.close()
        assert len(checkpoint.claims()) == 1

    asyncio.run(main())


def test_one_that_was_closed_can_be_used_again(path: Path) -> None:
    async def main() -> None:
        checkpoint = Checkpoint(path, boot_id=BOOT)
        for number in (1, 2):
            async with asyncio.timeout(5):
                await checkpoint.update(adding(prepared(str(number))))
            await checkpoint.close()
        assert len(checkpoint.claims()) == 2

    asyncio.run(main())


def test_nothing_is_written_where_nothing_changes(path: Path) -> None:
    write(path, "u-1")
    before = path.stat()

    async def use(checkpoint: Checkpoint) -> None:
        await checkpoint.update(adding(prepared("u-1")))
        await checkpoint.update(lambda claims: claims)

    using(path, use)
    assert path.stat() == before


def test_who_stops_waiting_for_a_change_does_no_harm(path: Path) -> None:
    async def use(checkpoint: Checkpoint) -> None:
        waiting = asyncio.create_task(checkpoint.update(adding(prepared("u-1"))))
        other = asyncio.create_task(checkpoint.update(adding(prepared("u-2"))))
        await asyncio.sleep(0)
        waiting.cancel()
        await other

    using(path, use)
    assert list(claims(path)) == ["u-1", "u-2"]


# What cannot be trusted


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"schema": 1}', "\x00", "[" * 100_000),
        '{"schema": 1, "sha256": "x", "checkpoint": {"boot_id": "0f6d2e1c", "claims": []}}',
        '{"schema": "1", "sha256": "x", "checkpoint": {"boot_id": "0f6d2e1c", "claims": []}}',
    ],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot trust .*nothing is prepared until"):
        claims(path)
    with pytest.raises(CheckpointError):
        write(path, "u-1")
    assert path.read_text() == text


def test_a_newer_schema_is_an_error_that_says_what_to_do(path: Path) -> None:
    write(path, "u-1")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(CheckpointError, match=r"schema 2 .* install the newer agent again"):
        claims(path)


def test_every_byte_counts(path: Path) -> None:
    write(path, "u-1")
    text = path.read_text()
    for old, new in (("0000:41:00.0", "0000:42:00.0"), ("completed", "started"), ("u-1", "u-2")):
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match="its checksum does not match"):
            claims(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("uid", "../x"), ("uid", 1), ("name", "A"), ("namespace", ""), ("state", "done")),
        *(("owner", "../a"), ("is_brought", 1), ("devices", None), ("devices", [{}])),
    ],
)
def test_a_file_with_a_right_checksum_and_wrong_values_is_an_error(
    path: Path, field: str, value: Any
) -> None:
    from kata_gpu.publish.kubelet import checkpoint  # noqa: PLC0415 - its checksum alone

    write(path, "u-1")
    document = json.loads(path.read_text())
    document["checkpoint"]["claims"][0][field] = value
    document["sha256"] = checkpoint._checksum(document["checkpoint"])
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="cannot trust"):
        claims(path)


def test_a_claim_that_could_not_be_read_again_is_not_written(path: Path) -> None:
    async def use(checkpoint: Checkpoint) -> None:
        await checkpoint.update(adding(prepared("u-1", unit="0000:\n41:00.0")))

    with pytest.raises(HostError, match="cannot note it in the checkpoint"):
        using(path, use)
    assert not path.exists()


def test_a_link_in_place_of_its_folder_is_not_followed(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.parent.parent.mkdir(parents=True)
    path.parent.symlink_to(elsewhere)
    with pytest.raises(KataGpuError, match="its folder is a link"):
        write(path, "u-1")
    assert not (elsewhere / "checkpoint.json").exists()


def test_a_folder_in_its_place_is_an_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=os.strerror(errno.EISDIR)):
        claims(path)


# Other processes


_WRITER: Final = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, ".")
from kata_gpu.publish.kubelet.checkpoint import Checkpoint
from tests.test_checkpoint import BOOT, adding, prepared

async def main(path, name):
    checkpoint = Checkpoint(path, boot_id=BOOT)
    for number in range(20):
        await checkpoint.update(adding(prepared(f"{name}-{number}")))
    await checkpoint.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def test_two_processes_lose_nothing_of_each_others(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name]) for name in ("a", "b")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert len(claims(path)) == 40


def test_a_lock_that_is_held_for_a_moment_is_waited_for(path: Path) -> None:
    held, freed = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.exclusive(path.with_name("serialize.lock")):
            held.set()
            freed.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)

    async def use(checkpoint: Checkpoint) -> None:
        with pytest.raises(HeldError, match=f"within 0.3 s: process {os.getpid()} holds it"):
            await checkpoint.update(adding(prepared("u-1")))
        freed.set()
        await checkpoint.update(adding(prepared("u-2")))

    using(path, use)
    holder.join()
    assert list(claims(path)) == ["u-2"]


_HANGER: Final = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from kata_gpu.host import locks
with locks.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_killed_holder_of_the_lock_holds_up_nobody(path: Path) -> None:
    lock = path.with_name("serialize.lock")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HANGER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert locks.is_held(lock)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert not locks.is_held(lock)
    write(path, "u-1")
    assert list(claims(path)) == ["u-1"]
