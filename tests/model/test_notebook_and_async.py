"""What notebooks show, and the calls for asynchronous programs: the same answers, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import html
import re
import threading
from pathlib import Path

import pytest
from causal import build_generating_bundle

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.html_table import html_table
from edgepeft.report.gate import Gate, Report, Table


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_generating_bundle(tmp_path_factory.mktemp("generating"))


def test_awaited_answers_are_the_same(bundle: Path) -> None:
    with runtime.open(bundle, threads=1) as model:
        names = [None, *model.adapters][:3]
        views = [model.adapter(name) for name in names]
        options = {"chat": False, "max_new_tokens": 6}
        expected = [view.generate("the film was", **options).text for view in views]

        async def all_at_once() -> list[str]:
            return [
                each.text for each in await asyncio.gather(*(v.agenerate("the film was", **options) for v in views))
            ]

        assert asyncio.run(all_at_once()) == expected

        async def streamed() -> str:
            return "".join([piece async for piece in views[-1].astream("the film was", **options)])

        assert asyncio.run(streamed()) == expected[-1]


def test_the_loop_goes_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call waits in its thread, another task runs: the call only ends once that has."""
    with runtime.open(bundle, threads=1) as model:
        other_ran, view = threading.Event(), model.base
        monkeypatch.setattr(type(view), "generate", lambda self, prompts, **options: other_ran.wait(30))

        async def both() -> bool:
            async def other() -> None:
                other_ran.set()

            waited, _ = await asyncio.gather(view.agenerate("x"), other())
            return bool(waited)

        assert asyncio.run(both())


def test_an_abandoned_stream_ends(bundle: Path) -> None:
    """Left after its first piece: the session is free for the next call."""
    with runtime.open(bundle, threads=1) as model:

        async def first() -> str:
            stream = model.base.astream("the film was", chat=False, max_new_tokens=30)
            async for piece in stream:
                await stream.aclose()
                return piece
            return ""

        asyncio.run(first())
        assert model.base.generate("the film was", chat=False, max_new_tokens=3).text is not None


def test_notebooks_show_tables(bundle: Path) -> None:
    opened = read_bundle(bundle)
    shown = opened._repr_html_()
    for name in (*opened.manifest.variants, *opened.manifest.adapters):
        assert f">{name}</td>" in shown
    with runtime.open(bundle, threads=1) as model:
        name = next(iter(model.adapters))
        assert f">{name}</td>" in model.adapter(name)._repr_html_()
        assert ">(the base)</td>" in model._repr_html_()


def test_reports_show_their_verdict() -> None:
    gates = (Gate.at_most("size <b>", 3.0, 4.0, "MB"), Gate.undecided("speed", "too noisy"))
    report = Report(
        kind="bench", title="A bundle", gates=gates, tables=(Table("Sizes", ("what", "MB"), (("x", None),)),)
    )
    assert "size &lt;b&gt;" in report._repr_html_()
    assert f": {report.verdict.value}</b>" in report._repr_html_()


def test_what_others_named_is_escaped() -> None:
    shown = html_table("<script>", ("a&b",), [("<img onerror=x>",), (None,)])
    assert "<script>" not in shown
    assert "<img" not in shown
    assert html.unescape(re.sub(r"<[^>]+>", "|", shown)).count("<img onerror=x>") == 1
