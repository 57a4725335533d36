"""A loopback HTTP server whose clients cannot take more of this machine than they are given."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

#: Connections that are served at once. A browser opens six.
WORKERS = 32

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 22\r\nConnection: close\r\n\r\n"
    b"too many connections\r\n"
)

Handler = Any  # what socketserver calls with (connection, address, server)


class BoundedServer(socketserver.TCPServer):
    """Serves up to :data:`WORKERS` connections at once and refuses more with 503.

    A handler says with :meth:`until` how long what it waits for may take; a connection that takes longer is cut. A time-out of
    the socket alone would not do: each byte of a slow client starts it again.
    """

    # On Windows the option lets another program take the port.
    allow_reuse_address = sys.platform != "win32"
    request_queue_size = WORKERS

    def __init__(self, address: tuple[str, int], handler: Handler, workers: int = WORKERS) -> None:
        self._free = threading.BoundedSemaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="edgepeft-site")
        self._ends: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        try:
            super().__init__(address, handler)
        except OSError:
            self._pool.shutdown()
            raise

    def until(self, connection: socket.socket, seconds: float) -> None:
        """Cut ``connection`` unless this is called again, or it is served, within ``seconds``."""
        with self._lock:
            self._ends[connection] = time.monotonic() + seconds

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to a worker, or refuse it."""
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(_REFUSAL)
            self.shutdown_request(request)
            return
        self._pool.submit(self._serve, request, client_address)

    def service_actions(self) -> None:
        """Cut what has taken too long; ``serve_forever`` calls this again and again."""
        now = time.monotonic()
        with self._lock:
            for connection in [connection for connection, end in self._ends.items() if end < now]:
                self._cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away in the middle of a file."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Close the port, cut every connection and wait for the workers."""
        super().server_close()
        with self._lock:
            for connection in list(self._ends):
                self._cut(connection)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # one request that fails is reported, and the server goes on (as socketserver does)
            self.handle_error(request, client_address)
        finally:
            # Forgotten before it is closed: its number may be another connection's at once.
            with self._lock:
                self._ends.pop(request, None)
            self.shutdown_request(request)
            self._free.release()

    def _cut(self, connection: socket.socket) -> None:
        """Wake the worker that waits for ``connection``, which then closes it."""
        del self._ends[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
