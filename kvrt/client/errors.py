"""What is wrong."""

from kvrt.errors import KvrtError


class ServerError(KvrtError):
    """The server refuses something, cannot do it now, or cannot be reached.

    Args:
        status: of HTTP; 0: there was no answer.
        code: for programs, such as ``rate_limit_exceeded``.
        param: the field at fault.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
