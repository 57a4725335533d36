"""The calls of a view for asynchronous programs: each runs in a thread, and the event loop goes on meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

from .generation import Prompt
from .text import Texts

_END = object()


async def _in_thread(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    import asyncio  # it is there in a program that awaits, and others need not load it

    return await asyncio.to_thread(call, *arguments, **options)


class AwaitedCalls(ABC):
    """``apredict``, ``arun``, ``aembed``, ``agenerate``, ``atranscribe`` and ``astream``: as the calls without the ``a``.

    Options are the same.

    The view is the one at the time of the call, whatever ``use()`` chooses later. ONNX Runtime computes without Python's lock, so
    several calls at once run beside each other; a session's own threads set how much that gains. A task that is cancelled stops
    waiting; what it started ends by itself, but for ``astream``, which stops after the token it is at.

    Example:
        >>> async def both(model):
        ...     return await asyncio.gather(model.adapter("a").apredict("good"), model.adapter("b").apredict("good"))
    """

    __slots__ = ()

    @property
    @abstractmethod
    def view(self) -> Any:
        """The view that calls go to."""

    async def apredict(self, texts: Texts | str, **options: Any) -> Any:
        """``await`` for ``predict``."""
        return await _in_thread(self.view.predict, texts, **options)

    async def arun(self, texts: Texts | str, **options: Any) -> Any:
        """``await`` for ``run``."""
        return await _in_thread(self.view.run, texts, **options)

    async def aembed(self, texts: Texts | str, **options: Any) -> Any:
        """``await`` for ``embed``."""
        return await _in_thread(self.view.embed, texts, **options)

    async def agenerate(self, prompts: Any, **options: Any) -> Any:
        """``await`` for ``generate``."""
        return await _in_thread(self.view.generate, prompts, **options)

    async def atranscribe(self, sound: Any, **options: Any) -> Any:
        """``await`` for ``transcribe``."""
        return await _in_thread(self.view.transcribe, sound, **options)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """``async for`` over the pieces of ``stream``."""
        import asyncio

        stream = await _in_thread(self.view.stream, prompt, **options)
        try:
            while (piece := await _in_thread(next, stream, _END)) is not _END:
                yield str(piece)
        except asyncio.CancelledError:
            stream.cancel()  # a thread is in it: it ends after its token
            raise
        except GeneratorExit:
            stream.close()
            raise
