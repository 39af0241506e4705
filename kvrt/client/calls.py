"""Each call, as a value that both clients carry out, and what else they have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from kvrt.client.errors import ServerError
from kvrt.client.standing import Status
from kvrt.client.words import Batch, BatchPage, Deleted, FailurePage, File, Models, Ordered, Usage

T = TypeVar("T")
URL = "http://127.0.0.1:8000"
TIMEOUT_S = 600.0
"""In which nothing comes."""

LOOK_S = 1.0
"""Between two looks at a batch."""

PAGE = 100
"""Of lists, so many are asked for at once."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call.

    Args:
        kind: what comes back.
        query: what stands behind the path; None is left out.
        body: JSON.
        file: is sent as a form, with its name.
    """

    method: str
    path: str
    kind: type[T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    file: tuple[str, BinaryIO] | None = None

    def options(self) -> dict[str, Any]:
        """As httpx takes it."""
        given: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.query.items() if value is not None},
        }
        if self.file is not None:
            given |= {"files": {"file": self.file}, "data": {"purpose": "batch"}}
        elif self.body is not None:
            given["json"] = self.body
        return given

    def read(self, status: int, body: bytes, headers: Mapping[str, str]) -> T:
        """What has come back.

        Raises:
            ServerError: it is an error, or nothing that is known.
        """
        if status >= 300:
            raise refused(status, body, headers)
        try:
            return msgspec.json.decode(body, type=self.kind)
        except msgspec.MsgspecError as error:
            message = f"{self.path}: what came is not of a server of this version: {error}"
            raise ServerError(message, status=status) from None


def refused(status: int, body: bytes, headers: Mapping[str, str]) -> ServerError:
    """What an answer that is an error says."""
    try:
        error = msgspec.json.decode(body)["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        message, code, param = f"the server answered {status}", None, None
    after = headers.get("retry-after", "")
    return ServerError(
        message,
        status=status,
        code=code,
        param=param,
        retry_after=float(after) if after.isascii() and after.isdigit() else None,
    )


def headers_of(key: str | None) -> dict[str, str]:
    """What a request brings."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


def unreachable(error: httpx.HTTPError) -> ServerError:
    """Nothing has come back."""
    return ServerError(f"the server gives no answer: {type(error).__name__}")


def status() -> Call[Status]:
    return Call("GET", "/status", Status)


def models() -> Call[Models]:
    return Call("GET", "/v1/models", Models)


def order(order: str, name: str) -> Call[Ordered]:
    return Call("POST", f"/models/{order}", Ordered, body={"model": name})


def events() -> Call[None]:
    """As a stream."""
    return Call("GET", "/models/sse", type(None))


def usage(since: str | None, until: str | None, workspace: str | None) -> Call[Usage]:
    query = {"since": since, "until": until, "workspace": workspace}
    return Call("GET", "/usage", Usage, query)


def profile(seconds: float, model: str | None) -> Call[dict[str, Any]]:
    """Of what the engine does in the seconds to come."""
    body: dict[str, Any] = {"seconds": seconds}
    if model is not None:
        body["model"] = model
    return Call("POST", "/profile", dict[str, Any], body=body)


def end_profile() -> Call[dict[str, Any]]:
    """Of the one that is being made, which comes then."""
    return Call("DELETE", "/profile", dict[str, Any])


def chat(model: str, messages: Any, fields: Mapping[str, Any]) -> Call[None]:
    """As a stream."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": model, "messages": messages, **fields, "stream": True}
    return Call("POST", "/v1/chat/completions", type(None), body=body)


def upload(name: str, file: BinaryIO) -> Call[File]:
    return Call("POST", "/v1/files", File, file=(name, file))


def content(file: str) -> Call[None]:
    """As a stream."""
    return Call("GET", f"/v1/files/{_part(file)}/content", type(None))


def create(
    file: str, endpoint: str, window: str, metadata: Mapping[str, str] | None, priority: int
) -> Call[Batch]:
    body: dict[str, Any] = {
        "input_file_id": file, "endpoint": endpoint, "completion_window": window,
        "priority": priority,
    }  # fmt: skip
    if metadata is not None:
        body["metadata"] = dict(metadata)
    return Call("POST", "/v1/batches", Batch, body=body)


def batches(after: str | None) -> Call[BatchPage]:
    return Call("GET", "/v1/batches", BatchPage, {"after": after, "limit": PAGE})


def batch(id: str) -> Call[Batch]:
    return Call("GET", f"/v1/batches/{_part(id)}", Batch)


def cancel(id: str) -> Call[Batch]:
    return Call("POST", f"/v1/batches/{_part(id)}/cancel", Batch)


def retry(id: str) -> Call[Batch]:
    return Call("POST", f"/v1/batches/{_part(id)}/retry", Batch)


def delete(id: str) -> Call[Deleted]:
    return Call("DELETE", f"/v1/batches/{_part(id)}", Deleted)


def failed(id: str, after: int | None) -> Call[FailurePage]:
    query = {"after": after, "limit": PAGE}
    return Call("GET", f"/v1/batches/{_part(id)}/failed", FailurePage, query)


def _part(id: str) -> str:
    """Of a path."""
    return quote(id, safe="")
