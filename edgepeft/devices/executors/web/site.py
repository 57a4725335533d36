"""A web server on this machine's loopback for one bundle, the ``edgepeft-web`` module and a page."""

from __future__ import annotations

import functools
import queue
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from ....json_text import json_text

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
_ANSWER_LIMIT = 256 << 20


class Site:
    """Serves folders under path prefixes; a context manager, stopped when it is left.

    ``folders`` maps a prefix (``/bundle/``) to a folder; ``texts`` a path to its content; ``start`` is the page to begin
    with. What a page posts to ``/answer`` is put into :attr:`answers` as text. Only this machine can connect, and only by a
    loopback name.
    """

    def __init__(
        self, folders: Mapping[str, Path], texts: Mapping[str, str] | None = None, port: int = 0, start: str = "/"
    ) -> None:
        self.start = start
        self.answers: queue.Queue[str] = queue.Queue()
        self._texts = dict(texts or {})
        handler = functools.partial(_Handler, {k: v.resolve() for k, v in folders.items()}, self._texts, self.answers)
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="edgepeft-site", daemon=True)

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end. ``localhost`` is a secure context: pages may check hashes."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, path: str, text: str) -> None:
        """Serve one more text."""
        self._texts[path] = text

    def wait(self) -> None:
        """Until Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(1.0)

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away in the middle of a file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(
        self, folders: Mapping[str, Path], texts: Mapping[str, str], answers: queue.Queue[str], *arguments: Any
    ) -> None:
        self._folders = folders
        self._texts = texts
        self._answers = answers
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the page's own errors are what matters."""

    def do_GET(self) -> None:
        """A text or a file."""
        path = unquote(urlsplit(self.path).path)
        if not self._is_local():
            return
        if path in self._texts:
            kind = _TYPES.get(Path(path).suffix, _TYPES[".html"])
            self._send(HTTPStatus.OK, self._texts[path].encode(), kind)
            return
        file = self._file(path)
        if file is None:
            self._send(HTTPStatus.NOT_FOUND, f"no {path} here".encode(), "text/plain")
            return
        with suppress(ConnectionError), file.open("rb") as stream:
            self._head(HTTPStatus.OK, file.stat().st_size, _TYPES.get(file.suffix, "application/octet-stream"))
            shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def do_POST(self) -> None:
        """The page's answer."""
        if not self._is_local():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer" or not length.isdigit() or int(length) > _ANSWER_LIMIT:
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, b"answers go to /answer", "text/plain")
            return
        self._answers.put(self.rfile.read(int(length)).decode("utf-8", "replace"))
        self._send(HTTPStatus.OK, b"{}", "application/json")

    def _is_local(self) -> bool:
        """Refuse a page of another site that reached this server by a name of its own (DNS rebinding)."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host in {"localhost", "127.0.0.1"}:
            return True
        self.close_connection = True
        self._send(HTTPStatus.FORBIDDEN, b"only localhost is served", "text/plain")
        return False

    def _file(self, path: str) -> Path | None:
        for prefix, folder in self._folders.items():
            if path.startswith(prefix):
                file = (folder / path.removeprefix(prefix)).resolve()
                return file if file.is_relative_to(folder) and file.is_file() else None
        return None

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        with suppress(ConnectionError):
            self._head(status, len(body), kind)
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-cache")
        # Cross-origin isolation: without it a page has no threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()


def as_json(value: Any) -> str:
    """A value as a text to serve."""
    return json_text(value, indent=None)
