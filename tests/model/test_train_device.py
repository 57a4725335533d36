"""Training on a GPU where there is one, in bfloat16 where that is asked for, and memory that runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_language as language
from test_train import make_rows, model, tensors, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401
from test_train_speed import bench

from edgepeft.errors import InputError
from edgepeft.train import device, resume
from edgepeft.train.methods import Settings
from edgepeft.train.steps import Run
from edgepeft.train.workbench import Workbench


def made(place: Workbench, settings: Settings, **options: Any) -> Run:
    rate = {"batch_size": 8, "learning_rate": 1e-2, "total_steps": 30, "seed": 0, "threads": 1}
    return Run(
        place.fresh(settings, 1, steps=30),
        place.base.tokenizer,
        place.rows,
        **{**rate, **options},
    )


def test_where_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert device.training_device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device.training_device() == torch.device("cpu")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device.training_device() == torch.device("cpu")


def test_bfloat16_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Module:
        has = True

        def is_bf16_supported(self) -> bool:
            return self.has

    gpu = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda _: gpu)
    monkeypatch.setattr(device, "training_device", lambda: torch.device("cuda"))
    assert device.takes_bf16("bf16")
    assert not device.takes_bf16("fp32")
    gpu.has = False
    with pytest.raises(InputError, match="has no bfloat16; train with --precision fp32"):
        device.takes_bf16("bf16")
    monkeypatch.setattr(device, "training_device", lambda: torch.device("cpu"))
    assert device.takes_bf16("bf16")
    with pytest.raises(InputError, match="precision must be one of fp32, bf16"):
        device.takes_bf16("fp8")  # type: ignore[arg-type]


def test_what_is_restored_goes_to_the_device(model: Path) -> None:  # noqa: F811
    """The state file holds tensors of the processor. ``meta`` stands for a GPU: it refuses tensors of others as one would."""
    settings = Settings("adalora", rank=2, peft=(("tinit", 1), ("tfinal", 2), ("deltaT", 1)))
    with made(bench(model), settings) as run:
        run.advance(3)
        state = run.state()
        run.model.to("meta")
        run.device = next(run.model.parameters()).device
        run.restore(state)
        allocator = run.model.base_model.rankallocator
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            assert {value.device.type for value in getattr(allocator, name).values()} == {"meta"}


def test_the_gpus_generator_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Module:
        def __init__(self) -> None:
            self.state = torch.tensor([7])

        def get_rng_state(self) -> Any:
            return self.state

        def set_rng_state(self, state: Any) -> None:
            self.state = state

    gpu = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda _: gpu)
    monkeypatch.setattr(device, "training_device", lambda: torch.device("cuda"))
    kept = resume.random_state()
    gpu.state = torch.tensor([8])
    resume.restore_random(kept)
    assert gpu.state.tolist() == [7]
    monkeypatch.setattr(device, "training_device", lambda: torch.device("cpu"))
    assert resume.random_state()["device"] is None
    gpu.state = torch.tensor([8])
    resume.restore_random(kept)  # the training goes on where there is no GPU
    assert gpu.state.tolist() == [8]


def test_memory_that_runs_out_says_what_to_lower(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(Run, "_loss", full)
    with pytest.raises(InputError, match=r"memory ran out in training \(CUDA out of memory.*Lower --batch-size \(16\)"):
        train(model, tmp_path / "a", batch_size=16)
    with pytest.raises(InputError, match="can't allocate memory"), device.enough_memory("x"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(RuntimeError, match="something else"), device.enough_memory("x"):
        raise RuntimeError("something else")


def test_steps_in_bfloat16_and_scores_in_float32(model: Path) -> None:  # noqa: F811
    """bfloat16 has 8 bits of mantissa: losses differ from float32's, by little; what is measured is float32 in both."""
    place = bench(model)
    settings = Settings(rank=4)
    with made(place, settings) as plain, made(place, settings, bf16=True) as half:
        assert np.array_equal(plain.evaluate(place.rows)[0], half.evaluate(place.rows)[0])
        one, other = plain.advance(30), half.advance(30)
    assert one != other
    assert other == pytest.approx(one, abs=0.1)
    assert {str(parameter.dtype) for parameter in half.trained} == {"torch.float32"}


@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_an_adapter_trained_in_bfloat16(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    if kind == "classifier":
        plain, half = (
            train(model, tmp_path / precision, epochs=2, precision=precision) for precision in ("fp32", "bf16")
        )
        assert half.before == plain.before
        assert half.after.loss == pytest.approx(plain.after.loss, abs=0.1)
    else:
        data = language.write(tmp_path / "d.jsonl", language.rows(44))
        runs = (
            language.train(language_model, data, tmp_path / precision, epochs=2, precision=precision)
            for precision in ("fp32", "bf16")
        )
        plain, half = runs
        assert half.before == plain.before
        assert half.after.nll == pytest.approx(plain.after.nll, abs=0.1)
    a, b = tensors(tmp_path / "fp32"), tensors(tmp_path / "bf16")
    assert {str(value.dtype) for value in b.values()} == {"float32"}
    assert any(not np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.skipif("device.training_device().type == 'cpu'", reason="PyTorch finds no GPU here")
def test_on_a_gpu_as_on_the_processor(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten steps: sums in another order, which grows as training goes on; then the bundle answers as training measured."""
    from edgepeft import runtime
    from edgepeft.pipeline import export

    rows, held = make_rows(160), make_rows(60, seed=5)
    gpu = train(model, tmp_path / "gpu", data=rows, validation=held, epochs=1, precision="fp32")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    cpu = train(model, tmp_path / "cpu", data=rows, validation=held, epochs=1, precision="fp32")
    assert gpu.before.loss == pytest.approx(cpu.before.loss, abs=1e-4)
    assert gpu.after.loss == pytest.approx(cpu.after.loss, abs=2e-2)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    export(model, {"mine": tmp_path / "gpu"}, tmp_path / "b")
    answers = runtime.open(tmp_path / "b").adapter("mine").predict(list(held.texts))
    right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
    assert abs(right - (gpu.after.accuracy or 0.0) * 60) <= 1
