"""A Hugging Face hub on the loopback interface, which can be told to misbehave.

It serves one repository with what `huggingface_hub` asks for: the revision, the list of files, and
the files with their ETag and commit, whole or from an offset.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/model"


class FakeHub:
    """A context manager around the server.

    Attributes:
        files: name to content.
        cut: name to the number of bytes after which the connection is closed, once.
        status: name to an HTTP status to answer with in place of the file.
        forged: name to content that is sent under the hash of the right one.
        down: an HTTP status that every answer has; 0: there are answers.
        asked: name and first byte of each download that began.
    """

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.cut: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.forged: dict[str, bytes] = {}
        self.down = 0
        self.asked: list[tuple[str, int]] = []
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.paths.append(path)
            if hub.down:
                self._send(hub.down, b"", {})
            elif path == f"/api/models/{REPOSITORY}/revision/main":
                self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
            elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
                self._json([_entry(name, data) for name, data in hub.files.items()])
            elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/{COMMIT}/(.+)", path):
                self._file(match[1])
            else:
                error = {"X-Error-Code": "RepoNotFound" if "revision" in path else "EntryNotFound"}
                self._send(404, b"{}", error)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str) -> None:
            data = hub.files[name]
            wanted = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted else 0
            etag = hashlib.sha256(data).hexdigest() if _is_large(name) else _digest(data)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            data = hub.forged.get(name, data)
            if self.command == "GET":
                hub.asked.append((name, start))
                if name in hub.status:
                    self._send(hub.status[name], b"", {})
                    return
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut.pop(name, None) if self.command == "GET" else None
            self._send(206 if wanted else 200, data[start:], headers, cut)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
                self.close_connection = cut is not None

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}


def _is_large(name: str) -> bool:
    """Large files are known by their SHA-256, others by a hash of git's."""
    return name.endswith((".safetensors", ".gguf"))


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
