"""A short run of ``benchmarks/fuzz.py``: typed errors or right results, whatever is damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_two_hundred_mutants(
    bundle: Path, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # workers find the script's functions by the module's name
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=":")
    import fuzz

    originals = fuzz.Originals(bundle, tuple(checkpoints[n] for n in ("plain", "head", "dora")), fuzz.outputs(bundle))
    jobs = [(kind, seed) for seed in range(67) for kind in fuzz.KINDS]
    said: list[str] = []
    counts = fuzz.fuzz(originals, tmp_path, jobs, said.append)
    assert sum(counts.values()) == len(jobs)
    assert not [text for text in said if text.startswith(fuzz.FAULTS)], "\n".join(said)
    for kind in fuzz.KINDS:  # neither all refused nor all passed: the mutants reach what they are for
        assert counts[kind, "typed error"] > 20
        assert counts[kind, "right"] > 5
    assert sys.modules["fuzz"] is fuzz
