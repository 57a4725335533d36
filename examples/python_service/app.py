"""A service over one bundle: every request names its adapter, and many run beside each other.

    pip install edgepeft uvicorn
    BUNDLE=demo-out/bundle uvicorn app:app

    curl localhost:8000/adapters
    curl localhost:8000/predict -d '{"texts": ["I would buy it again"], "adapter": "reviews"}'

A plain ASGI application, for any ASGI server. It needs the device part alone: no torch, no transformers.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from edgepeft import runtime
from edgepeft.errors import EdgepeftError, UnknownAdapterError

#: Bytes of a request that are read.
LIMIT = 1 << 20
#: Requests that compute at once; more wait. Each takes the session's threads.
BESIDE = 4

Message = dict[str, Any]


class Service:
    """The application. The bundle is opened when the server starts and closed when it ends."""

    def __init__(self, bundle: str | None = None) -> None:
        self._bundle = bundle
        self._model: runtime.Runtime | None = None
        self._turn = asyncio.Semaphore(BESIDE)

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, answer = await self._answer(scope["method"], scope["path"], receive)
            body = json.dumps(answer).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _live(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        while True:
            event = (await receive())["type"]
            if event == "lifespan.startup":
                try:
                    bundle = self._bundle or os.environ["BUNDLE"]
                    self._model = await asyncio.to_thread(runtime.open, bundle, threads=2)
                except (EdgepeftError, KeyError) as error:
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
            elif self._model is not None:
                self._model.close()
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return

    async def _answer(self, method: str, path: str, receive: Callable[[], Awaitable[Message]]) -> tuple[int, Any]:
        model = self._model
        if model is None:
            return 503, {"error": "the bundle is not open yet"}
        if (method, path) == ("GET", "/adapters"):
            return 200, {"adapters": list(model.adapters), "variant": model.variant}
        if (method, path) != ("POST", "/predict"):
            return 404, {"error": f"{method} {path}: there are GET /adapters and POST /predict"}
        try:
            asked = json.loads(await _body(receive))
            view = model.adapter(asked["adapter"])  # immutable: other requests take others
            async with self._turn:
                found = await view.apredict(asked["texts"])
        except UnknownAdapterError as error:
            return 404, {"error": str(error)}
        except (EdgepeftError, ValueError, KeyError, TypeError) as error:
            return 400, {"error": f"{type(error).__name__}: {error}"}
        return 200, [{"label": each.label, "score": each.score} for each in found]


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LIMIT:
            raise ValueError(f"a request has at most {LIMIT} bytes")
    return body


app = Service()
