"""A web server on this machine's loopback for one bundle, the ``edgepeft-web`` module and a page."""

from __future__ import annotations

import functools
import ipaddress
import queue
import socket
import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ....json_text import json_text
from .folders import Folder
from .server import BoundedServer

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
#: Bytes of an answer, of all lines of a request's head, and of one of them.
_ANSWER_LIMIT = 256 << 20
_HEAD_LIMIT = 32 << 10
#: Seconds that a request's head, an answer's body, and a file that is sent may take. An idle connection waits for a head.
_HEAD_S, _BODY_S, _SEND_S = 15.0, 120.0, 900.0
#: How often it is looked whether something takes too long, or the site ends.
_POLL_S = 0.1
#: Names of this machine that no other site can have.
_LOCAL = frozenset({"localhost", "127.0.0.1"})


class Site:
    """Serves listed files under path prefixes; a context manager, stopped when it is left.

    Only this machine can connect, and only by a loopback name, unless ``host`` says otherwise; only a page of
    this site can fetch its files and post. What a page posts to ``/answer`` is put into :attr:`answers` as text, once
    :meth:`expect_answer` was called.

    Args:
        folders: For each prefix (``/bundle/``) the files that stand there.
        texts: For each path its content.
        port: On the loopback; 0 is any free one.
        start: The page to begin with.
        host: An address of this machine that others may connect to; ``0.0.0.0`` for all. They name it as a number: a name
            could be any site's (DNS rebinding).
        tls: HTTPS with this certificate.
    """

    def __init__(
        self,
        folders: Mapping[str, Folder],
        texts: Mapping[str, str] | None = None,
        port: int = 0,
        start: str = "/",
        *,
        host: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.start = start
        self._host = host
        self._scheme = "http" if tls is None else "https"
        self.answers: queue.Queue[str] = queue.Queue(maxsize=1)
        self._texts = dict(texts or {})
        self._expected = threading.Event()
        handler = functools.partial(_Handler, folders, self._texts, self.answers, self._expected)
        handler.keywords.update(origin=f"{self._scheme}://", host=host)
        self._server = BoundedServer((host or "127.0.0.1", port), handler)
        if tls is not None:
            # The handshake is the worker's: a client that does not say hello holds nobody up.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="edgepeft-site", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end. ``localhost`` is a secure context: pages may check hashes."""
        name = "localhost" if self._host is None else machine_address() if self._host == "0.0.0.0" else self._host
        return f"{self._scheme}://{name}:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def add(self, path: str, text: str) -> None:
        """Serve one more text."""
        self._texts[path] = text

    def expect_answer(self) -> None:
        """Take what a page of this site posts from now on; without this nothing is taken. One answer is kept at a time."""
        self._expected.set()

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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BoundedServer
    #: Of one send or receive; the server ends what goes on for longer in small pieces.
    timeout = 30.0

    def __init__(
        self,
        folders: Mapping[str, Folder],
        texts: Mapping[str, str],
        answers: queue.Queue[str],
        expected: threading.Event,
        *arguments: Any,
        origin: str,
        host: str | None,
    ) -> None:
        self._origin = origin
        self._host = host
        self._folders = folders
        self._texts = texts
        self._answers = answers
        self._expected = expected
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the page's own errors are what matters."""

    def handle_one_request(self) -> None:
        """A request whose head is short, and comes in time."""
        self.server.until(self.connection, _HEAD_S)
        self.rfile: Any
        self.rfile = head = _Head(self.rfile)
        try:
            super().handle_one_request()
        except _TooLongError:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head is at most {_HEAD_LIMIT} bytes")
        finally:
            self.rfile = head.stream

    def do_GET(self) -> None:
        """A text or a file."""
        path = unquote(urlsplit(self.path).path)
        if not self._is_sound() or not self._is_ours(path):
            return
        if self.headers.get("Content-Length", "0") != "0":
            self._refuse(HTTPStatus.BAD_REQUEST, "a GET has no body here")
        elif path in self._texts:
            self._send(HTTPStatus.OK, self._texts[path].encode(), _TYPES.get(Path(path).suffix, _TYPES[".html"]))
        elif (file := self._file(path)) is None:
            self._send(HTTPStatus.NOT_FOUND, f"no {path} here".encode("utf-8", "replace"), "text/plain; charset=utf-8")
        else:
            self._send_file(*file, _TYPES.get(Path(path).suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        """The page's answer."""
        if not self._is_sound():
            return
        length = self.headers.get("Content-Length", "")
        # A browser names the page that a POST is from, and no page can make it name another.
        if self.headers.get("Origin") != f"{self._origin}{self.headers['Host']}":
            self._refuse(HTTPStatus.FORBIDDEN, "only pages of this site may post")
        elif self.path != "/answer" or not self._expected.is_set():
            self._refuse(HTTPStatus.BAD_REQUEST, "answers go to /answer, where one is awaited")
        elif not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "an answer tells its Content-Length")
        elif len(length) > len(str(_ANSWER_LIMIT)) or int(length) > _ANSWER_LIMIT:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an answer is at most {_ANSWER_LIMIT} bytes")
        else:
            self._take(int(length))

    def _take(self, length: int) -> None:
        self.server.until(self.connection, _BODY_S)
        body = self.rfile.stream.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        try:
            self._answers.put_nowait(body.decode("utf-8", "replace"))
        except queue.Full:
            self._refuse(HTTPStatus.CONFLICT, "an answer was given already")
            return
        self._send(HTTPStatus.OK, b"{}", "application/json")

    def _is_sound(self) -> bool:
        """Refuse what could be read in two ways, and a page of another site that reached this server by a name of its own
        (DNS rebinding).
        """
        hosts = self.headers.get_all("Host") or []
        if any(len(self.headers.get_all(name) or ()) > 1 for name in ("Host", "Origin", "Content-Length")):
            self._refuse(HTTPStatus.BAD_REQUEST, "a header is there twice")
        elif "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "a body tells its Content-Length")
        elif not self.path.startswith("/"):
            self._refuse(HTTPStatus.BAD_REQUEST, "a path begins with a slash")
        elif not hosts or not (_is_local(hosts[0]) or (self._host is not None and _is_address(hosts[0], self._host))):
            self._refuse(HTTPStatus.FORBIDDEN, "only localhost is served" if self._host is None else "name the address")
        else:
            return True
        return False

    def _is_ours(self, path: str) -> bool:
        """Whether a page of this site fetches, or a person opens the page. Browsers say so; other programs say nothing."""
        site = self.headers.get("Sec-Fetch-Site", "none")
        opened = self.headers.get("Sec-Fetch-Dest") == "document" and path in self._texts
        origin = self.headers.get("Origin")
        if origin not in (None, f"{self._origin}{self.headers['Host']}") or not (
            site in {"same-origin", "none"} or opened
        ):
            self._refuse(HTTPStatus.FORBIDDEN, "only pages of this site may fetch its files")
            return False
        return True

    def _file(self, path: str) -> tuple[BinaryIO, int] | None:
        for prefix, folder in self._folders.items():
            if path.startswith(prefix):
                return folder.open(path.removeprefix(prefix))
        return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: a method, a version, a head that is none."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._refuse(status, message or status.phrase)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        """Answer, and close: what follows on the connection may be the rest of what was refused."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a head that is none has none
        self._send(status, why.encode("utf-8", "replace"), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._begin(status, len(body), kind)
        self.wfile.write(body)

    def _send_file(self, stream: BinaryIO, size: int, kind: str) -> None:
        with stream:
            self._begin(HTTPStatus.OK, size, kind)
            # A file that shrinks meanwhile leaves the answer short: the connection ends, so that the browser knows.
            if size and self.connection.sendfile(stream, 0, size) < size:
                self.close_connection = True

    def _begin(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.server.until(self.connection, _SEND_S)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-cache")
        if self.close_connection:
            self.send_header("Connection", "close")
        # Cross-origin isolation: without it a page has no threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()


class _TooLongError(Exception):
    """A request's head goes on and on."""


class _Head:
    """The lines of one request's head, which together have a limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._left = _HEAD_LIMIT

    def readline(self, limit: int = -1) -> bytes:
        """The next line; :class:`_TooLongError` past the limit."""
        line = self.stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _TooLongError
        return line


def _is_local(host: str) -> bool:
    name, _, port = host.partition(":")
    return name.lower() in _LOCAL and (not port or port.isdigit())


def _is_address(host: str, listening: str) -> bool:
    """Whether a ``Host`` names the address that is listened at: as a number, which no other site can have."""
    name, _, port = host.partition(":")
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return listening in {name, "0.0.0.0"} and (not port or port.isdigit())


def machine_address() -> str:
    """The address by which this machine reaches its network; the loopback's where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documents (RFC 5737); a datagram socket sends nothing here
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def as_json(value: Any) -> str:
    """A value as a text to serve."""
    return json_text(value, indent=None)
