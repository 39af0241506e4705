"""``kvrt profile --url``: of a server that runs."""

import threading
from typing import TYPE_CHECKING, Any

from kvrt.errors import KvrtError
from kvrt_cli.extras import check_extra

if TYPE_CHECKING:
    from kvrt.client import Client

WAITS_S = 60.0
"""For the answer, after the time that is recorded."""


def profile_of(
    url: str, *, seconds: float, served: str | None, key: str | None
) -> tuple[dict[str, Any], bool]:
    """What a server tells of the seconds to come, and whether Ctrl-C has ended it early.

    Raises:
        KvrtError: it does not answer, or refuses.
    """
    check_extra("profile --url", "client")
    from kvrt.client import Client

    root = url.rstrip("/").removesuffix("/v1")
    with Client(root, key, timeout=seconds + WAITS_S) as client:
        asking = _Asking(client, seconds, served)
        interrupted = False
        try:
            asking.wait()
        except KeyboardInterrupt:
            interrupted = True
            client.end_profile()  # so that what there is comes now
            asking.wait()
        return asking.found(), interrupted


class _Asking(threading.Thread):
    """One call, which goes on while its caller is interrupted."""

    def __init__(self, client: "Client", seconds: float, served: str | None) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._asked = seconds, served
        self._found: dict[str, Any] | KvrtError | None = None
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        seconds, served = self._asked
        try:
            self._found = self._client.profile(seconds, model=served)
        except KvrtError as error:
            self._found = error
        finally:
            self._done.set()

    def wait(self) -> None:
        while not self._done.wait(0.1):  # a join that Ctrl-C interrupts takes the thread for ended
            pass

    def found(self) -> dict[str, Any]:
        if isinstance(self._found, KvrtError):
            raise self._found
        assert self._found is not None, "it has ended"
        return self._found
