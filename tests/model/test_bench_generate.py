"""Measuring a causal language model: reading a prompt and decoding after it, per adapter, with budgets in tokens a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from causal import CONTEXT, build_causal_bundle

from edgepeft import runtime
from edgepeft.bench import Case, Job, Sampling, bench, bench_report, budget_gates, load_bench
from edgepeft.errors import InputError
from edgepeft.report.gate import Verdict
from edgepeft.targets import Target, load_target
from edgepeft.worker import inference as inferences
from edgepeft.worker.__main__ import measure

FAST = Sampling(warmup_s=0, measure_s=0.01, min_iterations=6, max_iterations=8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal"))


def target(tokens_per_s: float) -> Target:
    base = load_target("linux-x64-cpu")
    return base.model_copy(update={"budgets": base.budgets.model_copy(update={"tokens_per_s": tokens_per_s})})


def test_prompt_and_decoding_are_measured_apart(bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, target(1e9), shapes=["1x16", "2x8"], adapters=["wide"], processes=2, swaps=10, sampling=FAST)
    found = {case.shape: case for case in result.cases}
    assert list(found) == ["1x16", "1x16 decode", "2x8", "2x8 decode"]
    for shape, case in found.items():
        rows = int(shape[0])
        if "decode" in shape:
            assert case.tokens_per_s == pytest.approx(rows * 1000 / case.p50_ms)
        else:
            assert case.tokens_per_s is None
    assert result.variants[0].swap_first_inference_p50_ms is not None
    gates = {gate.name: gate for gate in budget_gates(result, target(1e9))}
    slow = gates["tokens/s fp32/wide 1x16 decode"]
    assert (slow.verdict, slow.limit, slow.bound) == (Verdict.FAIL, 1e9, "min")
    assert slow.value == found["1x16 decode"].tokens_per_s
    assert "tokens/s fp32/wide 1x16" not in gates
    assert {g.verdict for g in budget_gates(result, target(1e-3)) if g.name.startswith("tokens/s")} == {Verdict.PASS}
    report = tmp_path / "bench.json"
    report.write_text(json.dumps(result.model_dump(mode="json")), encoding="utf-8")
    assert load_bench(report) == result
    assert "tokens/s" in bench_report(result, target(1.0)).tables[0].columns


def test_one_slow_process_does_not_decide(bundle: Path) -> None:
    result = bench(bundle, target(1.0), shapes=["1x8"], adapters=[None], processes=2, swaps=0, sampling=FAST)
    case = next(c for c in result.cases if c.tokens_per_s is not None)
    mixed = case.model_copy(update={"process_p50_ms": (1.0, 9.0), "p50_ms": 5.0, "tokens_per_s": 200.0})
    (gate,) = (
        g
        for g in budget_gates(result.model_copy(update={"cases": (mixed,)}), target(500.0))
        if g.name.startswith("tokens")
    )
    assert gate.verdict is Verdict.INCONCLUSIVE  # one process makes 1,000 tokens a second


def test_decoding_stays_near_its_context(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are timed, the cache stays within a few of the length that the case names."""
    from edgepeft.runtime.generation.decoder import Decoder

    widths: list[int] = []
    step: Callable[..., Any] = Decoder.step

    def watched(self: Decoder, tokens: Any) -> Any:
        widths.append(self.width)
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", watched)
    monkeypatch.setattr(inferences, "DECODED", 4)
    many = Sampling(warmup_s=0, measure_s=0.01, min_iterations=30, max_iterations=30)
    job = Job(bundle=str(bundle), variant="fp32", threads=1, sampling=many,
              cases=(Case(adapter="wide", batch=2, sequence=8, phase="decode"),))  # fmt: skip
    measure(job)
    assert len(widths) >= 30
    assert set(widths) == {8, 9, 10, 11}


def test_the_adapter_is_in_use(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case runs with its own adapter's tensors: bound ones, since a run with IO binding ignores RunOptions."""
    from edgepeft.runtime.generation.decoder import Decoder

    seen: list[int] = []
    step: Callable[..., Any] = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, t: (seen.append(len(self._feeds)), step(self, t))[1])
    opened = runtime.open(bundle)
    for name in (None, "narrow", "wide"):
        seen.clear()
        case = Case(adapter=name, batch=1, sequence=8, phase="decode")
        inferences.inference(opened.use(name), case, 0)()
        assert seen == [0 if name is None else len(opened.manifest.adapters[name].tensors)]


def test_the_base_comes_back(bundle: Path) -> None:
    result = measure(Job(bundle=str(bundle), variant="fp32", threads=1, restore=True))
    assert result.base_restored is True


def test_a_context_that_is_full_has_nothing_to_decode(bundle: Path) -> None:
    result = bench(bundle, target(1.0), shapes=[f"1x{CONTEXT}"], adapters=[None], processes=2, swaps=0, sampling=FAST)
    assert [case.shape for case in result.cases] == [f"1x{CONTEXT}"]
    case = Case(adapter=None, batch=1, sequence=CONTEXT, phase="decode")
    with pytest.raises(InputError, match="none can be decoded"):
        inferences.inference(runtime.open(bundle), case, 0)
    with pytest.raises(InputError, match=f"at most {CONTEXT} tokens"):
        bench(bundle, target(1.0), shapes=[f"1x{CONTEXT + 1}"], swaps=0)


def test_slow_decoding_is_a_regression(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is the call itself."""
    job = Job(bundle=str(bundle), variant="fp32", threads=1, sampling=FAST,
              cases=(Case(adapter=None, batch=1, sequence=8, phase="decode"),))  # fmt: skip
    from edgepeft.runtime.generation.decoder import Decoder

    step: Callable[..., Any] = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, t: (sleep(0.02), step(self, t))[1])
    assert min(measure(job).cases[0].samples_ms) >= 20
