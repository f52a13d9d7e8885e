"""Root can ask the daemon for something on its socket; nobody else, and nothing shapeless."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.observe import client
from tests.serving import answer, connected, rest, served

POST: Final = "POST /v1/clear HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/status.sock"


def test_root_can_ask_for_something(path: Path) -> None:
    def ask() -> object:
        return client.post(path, "/v1/clear", {"unit": "0000:01:00.0"})

    assert served(path, ask) == {"cleared": "0000:01:00.0"}


def test_a_refusal_is_told_in_the_daemons_words(path: Path) -> None:
    def ask() -> str:
        with pytest.raises(HostError) as caught:
            client.post(path, "/v1/clear", {})
        return str(caught.value)

    assert served(path, ask) == "cannot clear: no unit is named"
    status, body = answer(path, POST.format(2, "{}").encode())
    assert (status, body) == (409, {"error": "cannot clear: no unit is named"})


def test_a_command_may_take_longer_than_a_client(path: Path) -> None:
    assert served(path, lambda: client.post(path, "/v1/long", {}), deadline_s=0.2) == "done"


def test_after_a_long_command_a_client_has_the_rest_of_its_time_and_no_more(path: Path) -> None:
    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(b"POST /v1/long HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
            return rest(channel)

    assert served(path, ask, deadline_s=0.2).endswith(b'"done"\n')


def test_nobody_but_root_can() -> None:
    script = """
import os, socket, sys
if not os.getuid():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for request in ("POST /v1/clear", "GET /v1/status"):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(sys.argv[1])
        head = f"{request} HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 2\\r\\n\\r\\n"
        channel.sendall(head.encode() + b"{}")
        print(channel.makefile().readline().split()[1])
"""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # nobody can come here
    folder.chmod(0o755)

    def ask() -> str:
        argv = [sys.executable, "-S", "-c", script, str(folder / "sock")]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    try:
        said = served(folder / "sock", ask, mode=0o666)
    finally:
        folder.rmdir()
    assert said.split() == ["409" if os.getuid() else "403", "200"]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("", 400, "cannot read the body as JSON: "),
        ("{", 400, "cannot read the body as JSON: "),
        ("\xff", 400, "cannot read the body as JSON: "),
        ("[" * 60_000, 400, "cannot read the body as JSON: "),
        ("[]", 400, "cannot take a body that is no JSON object"),
        ("null", 400, "cannot take a body that is no JSON object"),
        (" " * 65_537, 413, "cannot take a body of more than 65536 bytes"),
        (" " * 4_000_000 + "{}", 413, "cannot take a body of more than 65536 bytes"),
        (" " * 65_534 + "{}", 409, "cannot clear: no unit is named"),
    ],
    ids=["empty", "half", "latin", "deep", "list", "null", "long", "huge", "just-right"],
)
def test_a_body_is_a_json_object_of_some_size(
    path: Path, body: str, status: int, reason: str
) -> None:
    answered, document = answer(path, POST.format(len(body), body).encode("latin-1"))
    assert answered == status
    assert document["error"].startswith(reason)


@pytest.mark.parametrize(
    ("request_line", "allowed"), [("GET /v1/clear", "POST"), ("POST /v1/status", "GET")]
)
def test_another_method_is_told_the_one_that_is_served(
    path: Path, request_line: str, allowed: str
) -> None:
    def ask() -> bytes:
        with connected(path) as channel:
            channel.sendall(f"{request_line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return rest(channel)

    said = served(path, ask).lower()
    assert said.startswith(b"http/1.1 405")
    assert f"\r\nallow: {allowed}\r\n".lower().encode() in said
