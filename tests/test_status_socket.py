"""The status socket answers whoever may ask, and no client can do it harm."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HeldError, HostError
from kata_gpu.observe import client, server
from tests.serving import STATE, answer, connected, rest, served

CURL: Final = (
    b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/status.sock"


@contextmanager
def pretender(path: Path, reply: bytes) -> Iterator[None]:
    """Answer one connection with whatever bytes, as a stranger behind the path might."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply_once() -> None:
            channel, _ = listener.accept()
            with channel:
                channel.recv(65536)
                channel.sendall(reply)

        thread = threading.Thread(target=reply_once)
        thread.start()
        yield
        thread.join()


# Answers


def test_the_document_is_answered(path: Path) -> None:
    assert served(path, lambda: client.get(path, "/v1/status")) == STATE


def test_curl_gets_the_document(path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        assert answer(path, CURL) == (200, STATE)
        return
    argv = [curl, "--silent", "--unix-socket", str(path), "http://localhost/v1/status"]
    done = served(path, lambda: subprocess.run(argv, check=True, capture_output=True))
    assert json.loads(done.stdout) == STATE


def test_a_query_is_no_part_of_the_path(path: Path) -> None:
    assert answer(path, b"GET /v1/status?x=1 HTTP/1.1\r\nHost: a\r\n\r\n") == (200, STATE)


def test_an_old_protocol_is_answered_too(path: Path) -> None:
    assert answer(path, b"GET /v1/status HTTP/1.0\r\n\r\n") == (200, STATE)


def test_a_request_in_pieces_is_put_together(path: Path) -> None:
    def ask() -> bytes:
        with connected(path) as channel:
            for byte in CURL:
                channel.send(bytes([byte]))
            return rest(channel)

    assert served(path, ask).startswith(b"HTTP/1.1 200")


def test_each_answer_is_the_state_at_its_time(path: Path) -> None:
    turn = iter(range(10))

    async def main() -> list[object]:
        async with server.serve(path, {"/n": lambda: next(turn)}):
            return [await asyncio.to_thread(client.get, path, "/n") for _ in range(3)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_what_is_not_there_is_404_and_says_what_is(path: Path) -> None:
    status, body = answer(path, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, body["error"]) == (
        404,
        "cannot find /v2; there is /v1/status, /big, /v1/clear, /v1/long",
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(path: Path, method: str) -> None:
    request = f"{method} /v1/status HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"
    status, body = answer(path, request.encode())
    assert (status, body["error"]) == (405, "cannot change anything here: only GET is served")


def test_a_head_request_gets_no_body(path: Path) -> None:
    assert answer(path, b"HEAD /v1/status HTTP/1.1\r\nHost: a\r\n\r\n") == (405, None)


# Clients that mean no good


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\xff\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=["bytes", "text", "no-host", "length", "tls"],
)
def test_garbage_is_refused_as_such(path: Path, request_bytes: bytes) -> None:
    status, body = answer(path, request_bytes)
    assert status == 400
    assert body["error"].startswith("cannot read the request: ")


def test_a_request_that_is_too_long_is_refused(path: Path) -> None:
    status, body = answer(path, b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 20_000)
    assert status == 431
    assert body["error"].startswith("cannot read the request: ")


def test_a_long_path_is_not_echoed_whole(path: Path) -> None:
    status, body = answer(path, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 404
    assert len(body["error"]) < 300


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/status HT", CURL[:-2]], ids=["none", "half", "end"]
)
def test_a_client_that_falls_silent_is_dropped_in_time(path: Path, sent: bytes) -> None:
    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(sent)
            return rest(channel)

    started = time.monotonic()
    assert served(path, ask, deadline_s=0.2) == b""
    assert time.monotonic() - started < 3


def test_a_client_that_does_not_read_is_dropped_in_time(path: Path) -> None:
    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.5)
            return rest(channel)

    assert len(served(path, ask, deadline_s=0.2)) < 4_000_000


def test_a_client_that_goes_away_does_no_harm(path: Path) -> None:
    def ask() -> object:
        for sent in (b"", b"GET ", b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n"):
            with connected(path) as channel:
                channel.sendall(sent)
        return client.get(path, "/v1/status")

    assert served(path, ask) == STATE


def test_silent_clients_in_great_number_only_delay_the_others(path: Path) -> None:
    def ask() -> object:
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(40)]
        for channel in silent:
            channel.connect(str(path))
        try:
            return client.get(path, "/v1/status")
        finally:
            for channel in silent:
                channel.close()

    assert served(path, ask, deadline_s=0.2) == STATE


def test_silent_clients_without_number_take_few_descriptors(path: Path) -> None:
    def ask() -> tuple[int, object]:
        before = descriptors()
        with ExitStack() as silent:
            channels = [
                silent.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                for _ in range(300)
            ]
            for channel in channels:
                channel.connect(str(path))  # waits while the queue is full
            channels[-1].settimeout(5)
            assert rest(channels[-1]) == b""  # it is closed, and all before were accepted
            taken = descriptors() - before - len(channels)
        while descriptors() > before:  # they are let go of
            time.sleep(0.01)
        return taken, client.get(path, "/v1/status")

    taken, answered = served(path, ask, deadline_s=5)
    assert 32 <= taken <= 128
    assert answered == STATE


def test_what_a_client_says_is_not_read_before_its_turn(path: Path) -> None:
    def ask() -> int:
        with ExitStack() as silent:
            for _ in range(32):
                silent.enter_context(connected(path))
            return taken_from(silent.enter_context(connected(path)))

    ours, theirs = socket.socketpair()
    with ours, theirs:
        buffered = taken_from(ours)
    assert served(path, ask, deadline_s=5) == buffered


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def taken_from(channel: socket.socket) -> int:
    """Return how many bytes are taken from one who does not wait for a reader."""
    channel.setblocking(False)
    taken = 0
    for _ in range(20):
        with suppress(BlockingIOError):
            while True:
                taken += channel.send(bytes(1024))
        time.sleep(0.01)
    return taken


def test_many_clients_at_once_are_all_answered(path: Path) -> None:
    def ask() -> list[object]:
        with ThreadPoolExecutor(max_workers=50) as pool:
            return list(pool.map(lambda _: client.get(path, "/v1/status"), range(100)))

    assert served(path, ask) == [STATE] * 100


def test_the_end_does_not_wait_for_clients_that_are_still_there(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
        idle.settimeout(5)

        def ask() -> object:
            idle.connect(str(path))
            return client.get(path, "/v1/status")  # after it: the idle one has been accepted

        started = time.monotonic()
        assert served(path, ask, deadline_s=30) == STATE
        assert rest(idle) == b""
    assert time.monotonic() - started < 5


# The place of the socket


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_says_who_may_ask(path: Path, mode: int) -> None:
    assert served(path, path.stat, mode=mode).st_mode & 0o777 == mode


def test_it_is_removed_at_the_end(path: Path) -> None:
    assert served(path, path.is_socket)
    assert not path.exists()


def test_one_that_a_killed_daemon_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert served(path, lambda: client.get(path, "/v1/status")) == STATE


def test_one_that_a_daemon_answers_on_is_refused_and_left(path: Path) -> None:
    def second() -> object:
        with pytest.raises(HeldError, match=r"another process listens there; stop it, or choose"):
            served(path, lambda: None)
        return client.get(path, "/v1/status")

    assert served(path, second) == STATE


def test_somebody_elses_socket_of_another_kind_is_left(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(HeldError, match=r"cannot serve on .*: another process listens there"):
            served(path, lambda: None)
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_else_at_its_path_is_refused_and_left(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to("x")
    else:
        (path.touch if kind == "file" else path.mkdir)()
    before = path.lstat()
    with pytest.raises(HostError, match=r"status.sock: it exists and is no socket"):
        served(path, lambda: None)
    assert path.lstat().st_ino == before.st_ino


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot serve on .*too long"):
        served(tmp_path / ("x" * 108), lambda: None)
    assert list(tmp_path.iterdir()) == []


# The client's errors


def test_nobody_there_is_told_with_what_to_do(path: Path) -> None:
    with pytest.raises(HostError, match=r"nobody serves .*status.sock; is it running \(systemctl"):
        client.get(path, "/v1/status")


def test_a_dead_socket_is_nobody_too(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with pytest.raises(HostError, match="nobody serves"):
        client.get(path, "/v1/status")


def test_without_permission_the_socket_is_named(path: Path) -> None:
    def ask_as_another() -> str:
        if os.geteuid():
            path.chmod(0)
            is_root = False
        else:
            os.seteuid(65534)
            is_root = True
        try:
            with pytest.raises(HostError, match=r"no permission to open .*status.sock") as caught:
                client.get(path, "/v1/status")
            return str(caught.value)
        finally:
            if is_root:
                os.seteuid(0)

    assert served(path, ask_as_another).startswith("cannot ask the agent: ")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "its answer is no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
        (b"", "without response"),
        (b'HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n""', "404"),
    ],
    ids=["text", "half", "ssh", "nothing", "404"],
)
def test_an_answer_that_is_none_is_told(path: Path, reply: bytes, reason: str) -> None:
    with pretender(path, reply), pytest.raises(HostError, match=rf"cannot ask the.*{reason}"):
        client.get(path, "/v1/status")


def test_a_daemon_that_does_not_answer_is_given_up(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(HostError, match=r"cannot ask the agent at .*: timed out"):
            client.get(path, "/v1/status", timeout_s=0.2)
