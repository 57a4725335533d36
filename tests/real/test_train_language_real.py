"""The demo's language adapters, trained on real weights, on exchanges and a novel they never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepeft.demo.language import train_language_demo

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize(("name", "at_least"), [("support", 0.18), ("austen", 0.1)])
def test_held_out_perplexity_falls(name: str, at_least: float, tmp_path: Path) -> None:
    """``at_least`` nats a token are about half of what was measured, and many of its standard errors."""
    result = train_language_demo(name, tmp_path / name, progress=False)
    assert result.layout == {"support": "chat", "austen": "text"}[name]
    assert result.change.standard_error is not None
    assert result.change.nll < -at_least
    assert result.change.nll < -4 * result.change.standard_error
