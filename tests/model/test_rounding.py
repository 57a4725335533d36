"""The tolerance of parity: the larger of 1e-4 and what rounding explains; a real error of that size is caught elsewhere.

The adapters edit queries and keys so strongly that attention decides between scores of thousands: a rounding of one of them changes
which token is looked at. Nothing here asserts how large the noise is, only what is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal
from click.testing import CliRunner
from conftest import save_lora

from edgepeft.base import rounding
from edgepeft.base.base import Base
from edgepeft.base.rounding import NOISE_LIMIT, SIDES, TOLERANCE, Noise, judge, rounding_noise
from edgepeft.bundle import Bundle
from edgepeft.cli import main
from edgepeft.errors import ParityError
from edgepeft.pipeline import add_slots, capture, read_adapter, validate, write_bundle
from edgepeft.validate.parity import check_parity, peft_noise, peft_outputs
from edgepeft.validate.probe import bundle_probe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal(tmp_path_factory.mktemp("rounding") / "model")


@pytest.fixture(scope="module")
def base(model: Path) -> Base:
    return capture(model, task="text-generation")


Made = Callable[[float, int], tuple[Path, Bundle]]


@pytest.fixture(scope="module")
def made(model: Path, base: Base, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint of LoRA on queries and keys with numbers of a size, and a bundle with it."""
    folder = tmp_path_factory.mktemp("made")
    known: dict[tuple[float, int], tuple[Path, Bundle]] = {}

    def make(scale: float, seed: int) -> tuple[Path, Bundle]:
        if (scale, seed) not in known:
            source = save_lora(
                folder / f"a{scale}-{seed}", model, task="text-generation", task_type="CAUSAL_LM", scale=scale, r=4,
                lora_alpha=8, seed=seed, target_modules=["q_proj", "k_proj"],
            )  # fmt: skip
            adapter = read_adapter(source, name="a", weights=base.weight)
            bundle = write_bundle(folder / f"b{scale}-{seed}", base, add_slots(base, [adapter]), [adapter])
            known[scale, seed] = source, bundle
        return known[scale, seed]

    return make


def noise_of(source: Path, bundle: Bundle, base: Base) -> Noise:
    probe = bundle_probe(bundle)
    expected = peft_outputs(bundle, "a", str(source), base.source, probe)
    return peft_noise(bundle, "a", str(source), base.source, probe, expected)


@pytest.fixture(scope="module")
def loud(made: Made, base: Base) -> tuple[Path, Bundle, Noise]:
    """An adapter whose own rounding in PEFT is beyond the tolerance."""
    for seed in range(24):
        source, bundle = made(2.0 + seed % 3, seed)
        noise = noise_of(source, bundle, base)
        if TOLERANCE < noise.size < NOISE_LIMIT:
            return source, bundle, noise
    pytest.fail("no adapter of 24 has noise beyond the tolerance")


def test_noise_is_measured_in_float64_and_in_another_order(
    made: Made, base: Base, loud: tuple[Path, Bundle, Noise], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = noise_of(*made(0.1, 0), base)
    assert (quiet.how, quiet.allowed) == ("float64", TOLERANCE)
    assert 0 < quiet.size < TOLERANCE / 2
    source, bundle, noise = loud
    assert noise.allowed == SIDES * noise.size > TOLERANCE
    monkeypatch.setattr(rounding, "_fits", lambda size: False)
    other = noise_of(source, bundle, base)
    assert other.how == "the same sums in the opposite order"
    assert other.size > TOLERANCE / 10, "what decides on a rounding is seen without float64 too"
    assert 0 < noise_of(*made(0.1, 0), base).size < TOLERANCE / 2


def test_a_model_that_float64_breaks() -> None:
    import torch

    class Single(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 64)

        def forward(self, x: Any) -> Any:
            return self.linear(x.float() * torch.ones(64, dtype=torch.float32))  # fails where the weights are float64

    torch.manual_seed(0)
    module, x = Single(), torch.randn(3, 64)

    def run(each: Any) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(each(x).numpy())

    before = torch.nn.functional.linear
    noise = rounding_noise(module, run, lambda a, b: float(np.abs(a - b).max()), run(module))
    assert noise.how == "the same sums in the opposite order"
    assert 0 < noise.size < 1e-5
    assert torch.nn.functional.linear is before


def test_a_correct_adapter_whose_reference_rounds_is_taken(
    loud: tuple[Path, Bundle, Noise], base: Base, model: Path, tmp_path: Path
) -> None:
    source, bundle, noise = loud
    (result,) = check_parity(bundle, {"a": str(source)}, base.source, module=base.reference)
    assert result.max_difference <= result.allowed
    assert result.noise == ("" if result.max_difference <= TOLERANCE else str(noise))
    found = validate(bundle.path, adapters={"a": source}, base=base.source)
    assert found.passed, found.problems
    done = CliRunner().invoke(
        main, ["export", "--model", str(model), "--adapter", f"a={source}", "--out", str(tmp_path / "bundle")]
    )
    assert done.exit_code == 0, done.output
    assert "allowed" in done.output


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_a_real_error_is_caught_where_noise_is_small(
    size: float, loud: tuple[Path, Bundle, Noise], made: Made, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as the bound that the other adapter's noise gives, or half or twice that: here nothing explains it."""
    from edgepeft.validate.probe import CausalProbe

    planted = max(size * loud[2].allowed, 1.5 * TOLERANCE)
    source, bundle = made(0.1, 0)
    run = CausalProbe.run

    def wrong(self: CausalProbe, runtime: Any) -> Any:
        found = run(self, runtime)
        scale = max(1.0, float(np.abs(found[0]["prompt"]).max()))
        if getattr(runtime, "name", None) == "a":
            found[0]["prompt"] = found[0]["prompt"].copy()
            found[0]["prompt"][0, 0, 0] += 1.05 * planted * scale
        return found

    check_parity(bundle, {"a": str(source)}, base.source, module=base.reference)
    monkeypatch.setattr(CausalProbe, "run", wrong)
    with pytest.raises(
        ParityError, match=r"differs from PEFT by .*allowed is 1e-04 \(PyTorch's own fp32 is .* from float64"
    ):
        check_parity(bundle, {"a": str(source)}, base.source, module=base.reference)


@pytest.mark.parametrize("difference", [math.nan, math.inf])
def test_what_is_not_finite_is_no_rounding(difference: float) -> None:
    def never() -> Noise:
        raise AssertionError("nothing is measured")

    with pytest.raises(ParityError, match="allowed is 1e-04"):
        judge("outputs", difference, never)


def test_judging() -> None:
    judge("outputs", TOLERANCE, lambda: pytest.fail("within the tolerance nothing is measured"))
    judge("outputs", 5e-4, lambda: Noise(3e-4, "float64"))
    for noise in (
        Noise(2e-4, "float64"),
        Noise(2 * NOISE_LIMIT, "float64"),
    ):  # too small; so large that it says nothing
        with pytest.raises(
            ParityError, match=r"outputs differ from PyTorch by 0.0005, allowed is .* \(PyTorch's own fp32"
        ):
            judge("outputs", 5e-4, lambda noise=noise: noise)
