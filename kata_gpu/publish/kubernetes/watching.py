"""One watch: lines of JSON that come when something happens, read in a thread of its own.

The library's own watch gives up its thread only when the server says something. This one
shuts the connection's reading side down, on which a read that waits for it ends.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from kata_gpu.publish.kubernetes import shapes
from kata_gpu.publish.kubernetes.errors import ApiError, clip, refusal

_LINE_MAX_BYTES: Final = 16 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_WHAT: Final = "watch ResourceSlices"
_SHORTEST_S: Final = 1.0
"""A watch that ended sooner and told nothing is a failure, or they would follow without a pause."""


class Watch:
    """What the server tells, to be taken on the loop; closed, it tells nothing more."""

    def __init__(
        self,
        begin: Callable[[], Any],
        wake: Callable[[], None],
        end: Callable[["Watch"], None],
    ) -> None:
        self._begin = begin
        self._wake = wake
        self._end = end
        self._told: deque[dict[str, Any]] = deque()
        self._response: Any = None
        self._guard = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
        self.failure: ApiError | None = None
        """Why it ended; None while it runs, and when the server ended it in its time."""

        self.is_begun = False
        """Whether the server agreed to tell."""

        self.is_over = False

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def take(self) -> Iterator[dict[str, Any]]:
        """Return what was told since: each with ``type`` and ``object``."""
        while self._told:
            yield self._told.popleft()

    def close(self) -> None:
        """End it, also while nothing is told. Any number of times."""
        with self._guard:
            self._is_closed = True
            response, self._response = self._response, None
        if response is not None:
            with suppress(Exception):  # it may have ended meanwhile, in any way
                response.shutdown()
        self._end(self)

    def _read(self) -> None:
        began_s = time.monotonic()
        try:
            response = self._begin()
            with self._guard:
                is_wanted = not self._is_closed
                self._response = response if is_wanted else None
            try:
                if is_wanted:
                    self._hear(response, began_s)
            finally:
                response.close()
        except ApiError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - the top of this thread; who takes is told
            self.failure = ApiError(f"cannot {_WHAT}: {clip(str(error))}")
        self._is_over_now()

    def _is_over_now(self) -> None:
        with self._guard:
            self._response = None
        self.is_over = True
        self._end(self)
        self._wake()

    def _hear(self, response: Any, began_s: float) -> None:
        if response.status != 200:  # noqa: PLR2004 - success
            again = response.headers.get("Retry-After")
            raise refusal(_WHAT, response.status, response.read(_LINE_MAX_BYTES), again)
        self.is_begun = True
        self._wake()
        has_told = False
        for line in _lines(response):
            if self._is_closed:
                return
            self._told.append(_event(json.loads(line)))
            has_told = True
            self._wake()
        if not has_told and time.monotonic() - began_s < _SHORTEST_S:
            raise ApiError(f"cannot {_WHAT}: the server ended it at once")


def _event(told: Any) -> dict[str, Any]:
    """Return an event as it was told; ApiError for one that is none, or that tells of an error."""
    kind, found = told.get("type"), told.get("object")
    if kind == "ERROR":
        raise refusal(_WHAT, int(found.get("code") or 0), json.dumps(found).encode())
    if kind == "BOOKMARK":
        shapes.version(found, _WHAT)
    else:
        shapes.resource_slice(found, _WHAT)
    return {"type": kind, "object": found}


def _lines(response: Any) -> Iterator[bytes]:
    """Yield whole lines as they come."""
    rest = b""
    for chunk in response.stream(_PIECE_BYTES, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(rest) > _LINE_MAX_BYTES:
            raise ApiError(f"cannot {_WHAT}: an event has more than {_LINE_MAX_BYTES} bytes")
