"""What the API server, or the way to it, has against a request."""

import json
from typing import Final

from kata_gpu.errors import KataGpuError
from kata_gpu.model.text import one_line

TEXT_MAX: Final = 500
"""Characters of an answer that an error repeats."""

_LOOKED_AT: Final = 4 * TEXT_MAX
_RETRY_S: Final = 1.0
"""When a server that has too much to do does not say when to come again."""


class ApiError(KataGpuError):
    """The request came to nothing: the server refused it, or nobody answered in time.

    :attr:`retry_after_s` is how long the server wants to be left alone; None when it does not
    say. :attr:`status` is that of its answer; None when there was none, and then an object that
    was to be written may be changed or not.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be answered in a moment, without anybody's doing."""
        return self.status is None or self.status >= 500 or self.retry_after_s is not None  # noqa: PLR2004 - the server's own


class NotFoundError(ApiError):
    """There is no such object, or no such kind of objects."""


class ConflictError(ApiError):
    """The object is another one by now, or is there already: look again."""


class TooManyRequestsError(ApiError):
    """The server has too much to do; :attr:`retry_after_s` tells when to come again."""


class ExpiredError(ApiError):
    """The server has forgotten what happened since: list again."""


_KINDS: Final = {
    404: NotFoundError,
    409: ConflictError,
    410: ExpiredError,
    429: TooManyRequestsError,
}


def refusal(what: str, status: int, raw: bytes, retry_after: str | None = None) -> ApiError:
    """Return the error that an answer with that *status* is."""
    kind = _KINDS.get(status, ApiError)
    retry_after_s: float | None = None
    if retry_after and retry_after.isascii() and retry_after.isdigit():
        retry_after_s = float(retry_after)
        kind = TooManyRequestsError if kind is ApiError else kind
    elif kind is TooManyRequestsError:
        retry_after_s = _RETRY_S
    hint = "; the agent's ClusterRole must allow it" if status in {401, 403} else ""
    message = f"cannot {what}: {status}: {text_of(raw)}{hint}"
    return kind(message, status=status, retry_after_s=retry_after_s)


def text_of(raw: bytes) -> str:
    """Return what an answer says, for people: the message of a Status, or its beginning."""
    try:
        message = json.loads(raw)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = raw[: 2 * _LOOKED_AT].decode(errors="replace")
    return clip(str(message))


def clip(text: str) -> str:
    """Return a text of somebody else's on one line, without what could steer a terminal."""
    words = one_line(text[:_LOOKED_AT])
    is_whole = len(words) <= TEXT_MAX and len(text) <= _LOOKED_AT
    return words if is_whole else f"{words[:TEXT_MAX]}…"
