"""What the API server, or the way to it, has against a request."""

from kata_gpu.errors import KataGpuError


class ApiError(KataGpuError):
    """The request came to nothing: the server refused it, or nobody answered in time.

    :attr:`retry_after_s` is how long the server wants to be left alone; None when it does not
    say. After a write that nobody answered, the object may be changed or not.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFoundError(ApiError):
    """There is no such object, or no such kind of objects."""


class ConflictError(ApiError):
    """The object is another one by now, or is there already: look again."""


class TooManyRequestsError(ApiError):
    """The server has too much to do; :attr:`retry_after_s` tells when to come again."""


class ExpiredError(ApiError):
    """The server has forgotten what happened since: list again."""
