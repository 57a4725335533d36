"""Many threads on one engine, each answer compared with what one thread gets."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgepeft.runtime import Runtime

Request = Callable[[Runtime], Any]


def generations(
    prompts: Sequence[str], names: Sequence[str], raw: dict[str, Any], *, blend: bool = True
) -> list[Request]:
    """Requests to a model that writes, each with a view of its own; ``blend``: both adapters are linear in a scale."""
    first, second = names
    found: list[Request] = [
        *(lambda m, n=n, p=p: m.adapter(n).generate(p, **raw).tokens for n in (None, *names) for p in prompts),
        lambda m: "".join(m.adapter(first).stream(prompts[0], **raw)),
        lambda m: "".join(m.adapter(second).stream(prompts[1], **raw)),
        lambda m: [
            (g.tokens, g.adapter) for g in m.generate([*prompts, prompts[0]], adapters=[first, None, second], **raw)
        ],
    ]
    linear: list[Request] = [
        lambda m: m.adapter(second, scale=0.5).generate(prompts[0], **raw).tokens,
        lambda m: m.adapter({first: 0.5, second: -1.0}).generate(prompts[1], temperature=2.0, seed=3, **raw).tokens,
    ]
    return [*found, *linear] if blend else found


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and found.shape == expected.shape and np.array_equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def hammer(model: Runtime, requests: Sequence[Request], swaps: Sequence[str | None], each: int) -> None:
    """16 threads with ``each`` random requests, while another swaps the adapter in use all the time."""
    expected = [request(model) for request in requests]
    assert not all(same(found, expected[0]) for found in expected[1:])
    model.engine.resident.forget()  # so that adapters are loaded while threads race for them
    stop, swapped = threading.Event(), 0

    def swap() -> None:
        nonlocal swapped
        while not stop.is_set():
            model.use(swaps[swapped % len(swaps)])
            swapped += 1

    def work(seed: int) -> list[int]:
        order = random.Random(seed).choices(range(len(requests)), k=each)
        return [place for place in order if not same(requests[place](model), expected[place])]

    swapper = threading.Thread(target=swap)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)  # threads take turns so often that a race has many places to happen at
    swapper.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            wrong = [place for found in pool.map(work, range(16)) for place in found]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        swapper.join()
    assert not wrong, f"{len(wrong)} of {16 * each} answers differ, the first of request {wrong[0]}"
    assert swapped > len(swaps)
