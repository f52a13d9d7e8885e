"""Ask the daemon on its status socket."""

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kata_gpu.errors import HostError, UnservedError

_TIMEOUT_S: Final = 10.0
_OK: Final = 200
_ANSWER_MAX_BYTES: Final = 64 << 20  # 4,096 functions make 4 MiB
_QUOTED_MAX: Final = 500


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket at a path."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the Unix socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


def get(path: Path, target: str, *, timeout_s: float = _TIMEOUT_S) -> Any:
    """Return the document at *target* from the daemon behind the socket at *path*.

    Raises:
        UnservedError: nobody serves it.
        HostError: it does not answer in time, or answers otherwise.
    """
    status, answer = _ask(path, "GET", target, None, timeout_s)
    if status != _OK:
        raise HostError(f"cannot ask the agent at {path}: {status} {_quoted(answer)}")
    return answer


def get_text(path: Path, target: str, *, timeout_s: float = _TIMEOUT_S) -> str:
    """Return the text at *target*, as `get` does a document; errors likewise."""
    status, text = _ask_for_text(path, "GET", target, None, timeout_s)
    if status != _OK:
        raise HostError(f"cannot ask the agent at {path}: {status} {_quoted(text)}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HostError(f"cannot ask the agent at {path}: its answer is not UTF-8") from error


def post(path: Path, target: str, body: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S) -> Any:
    """Ask the daemon to do what *target* is for, and return what it says of it.

    Raises:
        HostError: as `get`, or it refused, in the words it gave. When it does not answer in
            time it may still do what it was asked for.
    """
    status, answer = _ask(path, "POST", target, json.dumps(body), timeout_s)
    match answer:
        case _ if status == _OK:
            return answer
        case {"error": str(reason)}:
            raise HostError(_quoted(reason)[1:-1])
        case _:
            raise HostError(f"cannot ask the agent at {path}: {status} {_quoted(answer)}")


def _ask(
    path: Path, method: str, target: str, body: str | None, timeout_s: float
) -> tuple[int, Any]:
    """Return the status and the document of an answer."""
    status, text = _ask_for_text(path, method, target, body, timeout_s)
    try:
        return status, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HostError(f"cannot ask the agent at {path}: its answer is no JSON") from error


def _ask_for_text(
    path: Path, method: str, target: str, body: str | None, timeout_s: float
) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        text = response.read(_ANSWER_MAX_BYTES)
        if response.length:
            raise http.client.IncompleteRead(text, response.length)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise UnservedError(
            f"cannot ask the agent: nobody serves {path}; is it running (systemctl status "
            f"kata-gpu)?"
        ) from error
    except PermissionError as error:
        raise HostError(f"cannot ask the agent: no permission to open {path}") from error
    except OSError as error:
        raise HostError(f"cannot ask the agent at {path}: {error}") from error
    except (http.client.HTTPException, ValueError) as error:  # ValueError: a chunk of size -1
        raise HostError(f"cannot ask the agent at {path}: {_quoted(error)}") from error
    else:
        return response.status, text
    finally:
        connection.close()


def _quoted(said: object) -> str:
    """Return what a stranger said, for a line of text: printable and not too long."""
    return repr(said)[:_QUOTED_MAX]
