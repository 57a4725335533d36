"""Linear layers of training steps: LoRA's gradients against PEFT's own, and frozen weights in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import make_rows, model, tensors  # noqa: F401 - the fixture is this module's too
from test_train_speed import bench, build

from edgepeft.train import train_adapter
from edgepeft.train.methods import Settings
from edgepeft.train.steps import Run
from edgepeft.train.tune import tune


def run(place: Any, settings: Settings, **options: Any) -> Run:
    return Run(
        place.fresh(settings, 1),
        place.base.tokenizer,
        place.rows,
        batch_size=8,
        learning_rate=settings.rate,
        total_steps=20,
        seed=0,
        threads=1,
        **options,
    )


def as_peft(made: Run) -> Run:
    """The same run with PEFT's own layers."""
    made._floats.linears._forwards.clear()
    return made


def gradients(made: Run) -> dict[str, Any]:
    """Of one batch, by name, ``lora_B`` not at zero."""
    import torch

    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    made.model.train()
    with made._floats.step():
        made.forward(made.rows[:8]).loss.backward()
    return {name: parameter.grad for name, parameter in made.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "llama"])
def test_gradients_are_those_of_peft(model: Path, tmp_path: Path, kind: str, method: str) -> None:  # noqa: F811
    place = bench(build(tmp_path / kind, kind, model))
    settings = Settings(method, targets="all-linear", rank=3, alpha=5)
    mine, expected = gradients(run(place, settings)), gradients(as_peft(run(place, settings)))
    assert mine.keys() == expected.keys()
    assert sum("lora_" in name for name in mine) > 20
    for name, value in expected.items():
        # float32 sums in another order, through three layers.
        assert float((mine[name] - value).abs().max()) <= 2e-5 * max(1.0, float(value.abs().max())), name


def test_the_functions_against_numerical_gradients() -> None:
    """In float64, by finite differences (torch.autograd.gradcheck)."""
    import torch

    from edgepeft.train.linear_functions import DoraLinear, FrozenLinear, LoraLinear

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, trained: bool = True) -> Any:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(trained)

    x, weight, bias = draw(2, 3, 5), draw(4, 5, trained=False), draw(4, trained=False)
    norm = draw(4, trained=False).abs() + 1
    for each in (bias, None):
        assert torch.autograd.gradcheck(
            lambda x, a, b, each=each: LoraLinear.apply(x, weight, each, a, b, 1.7), (x, draw(2, 5), draw(4, 2))
        )
        assert torch.autograd.gradcheck(
            lambda x, a, b, m, each=each: DoraLinear.apply(x, weight, each, a, b, m, norm, 1.7),
            (x, draw(2, 5), draw(4, 2), draw(4)),
        )
    assert torch.autograd.gradcheck(lambda x, bias: FrozenLinear.apply(x, weight, bias), (x, draw(4)))


@pytest.mark.parametrize(
    ("settings", "fast"),
    [
        (Settings(targets="all-linear"), 13),
        (Settings("dora", targets="all-linear"), 13),
        (Settings(targets="all-linear", dropout=0.1), 0),
        (Settings("ia3"), 0),
        (Settings(targets="all-linear", peft=(("lora_bias", True),)), 0),
        (Settings(targets="all-linear", peft=(("bias", "lora_only"),)), 0),
    ],
    ids=lambda value: value.describe() if isinstance(value, Settings) else str(value),
)
def test_what_is_computed_otherwise_is_left_alone(model: Path, settings: Settings, fast: int) -> None:  # noqa: F811
    made = run(bench(model), settings)
    assert len(made._floats.linears) == fast
    classes = [type(module).forward for module in made.model.modules()]
    with made, made._floats.step():
        assert sum("forward" in vars(module) for module in made.model.modules()) == fast
    assert not any("forward" in vars(module) for module in made.model.modules())
    assert classes == [type(module).forward for module in made.model.modules()]


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "ln", "full"])
def test_bfloat16_learns_the_same(model: Path, method: str) -> None:  # noqa: F811
    """Losses within 2 %: bfloat16 keeps 8 bits, so a product of some 32 terms is off by some 0.2 %."""
    place = bench(model)
    targets = "all-linear" if method in {"lora", "dora"} else None
    settings = Settings(method, targets=targets, learning_rate=1e-3 if method == "full" else 1e-2)
    plain, half = run(place, settings), run(place, settings, bf16=True)
    with plain, half:
        expected, mine = plain.advance(12), half.advance(12)
        assert mine == pytest.approx(expected, rel=0.02)
        assert mine != expected
        assert all(parameter.dtype.is_floating_point and parameter.element_size() == 4 for parameter in half.trained)
        logits = half.evaluate(place.rows)[0]
    assert logits.dtype == np.float32
    assert np.abs(logits - plain.evaluate(place.rows)[0]).max() < 0.1


def test_a_search_in_bfloat16(model: Path, tmp_path: Path) -> None:  # noqa: F811
    found = tune(
        model,
        make_rows(60),
        tmp_path / "a",
        budget_s=1.0,
        threads=1,
        precision="bf16",
        validation=make_rows(40, seed=9),
    )
    assert all(value.dtype == np.float32 for value in tensors(tmp_path / "a").values())
    assert found.adapter.after.accuracy > 0.5


def test_a_training_in_bfloat16_is_repeatable(model: Path, tmp_path: Path) -> None:  # noqa: F811
    options: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "threads": 1, "progress": False, "precision": "bf16"}
    for name in "ab":
        train_adapter(model, make_rows(60), tmp_path / name, target_modules="all-linear", **options)
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(np.array_equal(first[name], second[name]) for name in first)
