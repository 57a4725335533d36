"""A training that was broken off goes on to the weights of one that was not: classifiers and language models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import test_train_language as language
from click.testing import CliRunner
from same_training import assert_same_curves, assert_same_weights
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.train import lm_loop, loop, resume
from edgepeft.train.progress import NoBar


class Power(BaseException):
    """The power goes off: nothing catches this."""


def breaking_at(step: int) -> Any:
    class Breaking(NoBar):
        def step(self, done: int) -> None:
            if done == step:
                raise Power

    return lambda *_: Breaking()


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"dropout": 0.2, "rank": 4}, 13),
        ({"dropout": 0.2, "rank": 4}, 20),
        ({"method": "adalora", "peft": {"tinit": 2, "tfinal": 5, "deltaT": 3}}, 14),
        ({"method": "head-only"}, 9),
    ],
    ids=["lora-within-an-epoch", "lora-between-epochs", "adalora", "head-only"],
)
def test_a_classifier_ends_with_the_same_weights(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    at: int,
) -> None:
    """Ten steps an epoch; a state after every step. Dropout and the order of rows are drawn from generators that go on too."""
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    settings = {"data": make_rows(178), "validation_fraction": 0.1, "epochs": 3, "patience": None, **options}
    train(model, tmp_path / "whole", **settings)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(at))
        with pytest.raises(Power):
            train(model, tmp_path / "a", **settings)
    assert resume.is_unfinished(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    steps = []
    with monkeypatch.context() as counted:
        counted.setattr(loop, "_bar", lambda *_: _Counting(steps))
        train(model, tmp_path / "a", resume=True, **settings)
    assert steps[0] == at  # the last state is that of the step before
    assert_same_weights(tmp_path / "whole", tmp_path / "a")
    assert_same_curves(tmp_path / "whole", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class _Counting(NoBar):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def step(self, done: int) -> None:
        self.steps.append(done)


def test_another_call_does_not_go_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(15))
        with pytest.raises(Power):
            train(model, tmp_path / "a")
    with pytest.raises(InputError, match=r"rank \(was 8, is 4\) changed since"):
        train(model, tmp_path / "a", resume=True, rank=4)
    with pytest.raises(InputError, match="the rows or their tokens changed since"):
        train(model, tmp_path / "a", resume=True, data=make_rows(160, seed=3))
    (resume.training_folder(tmp_path / "a") / "state.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match="cannot be read"):
        train(model, tmp_path / "a", resume=True)
    train(model, tmp_path / "a", epochs=1)  # begins anew
    train(model, tmp_path / "b", epochs=1, resume=True)  # nothing was broken off
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"dropout": 0.2}, 4),
        ({"dropout": 0.2}, 5),
        ({"packing": True, "max_length": 64, "gradient_accumulation": 2, "batch_size": 2}, 3),
        ({"method": "p_tuning"}, 7),
    ],
    ids=["within-an-epoch", "between-epochs", "packed", "p-tuning"],
)
def test_a_language_model_ends_with_the_same_weights(
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    at: int,
) -> None:
    """Padded batches are grouped by length in an order that torch's own generator draws."""
    from transformers import TrainerCallback

    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    data = language.write(tmp_path / "d.jsonl", language.rows(44))
    settings = {"epochs": 3, "patience": None, "batch_size": 8, **options}
    language.train(language_model, data, tmp_path / "whole", **settings)
    kept = lm_loop.keeping

    class Breaking(TrainerCallback):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.inner.on_step_end(args, state, control, **more)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.inner.on_save(args, state, control, **more)
            if state.global_step == at:
                raise Power

    with monkeypatch.context() as broken:
        broken.setattr(lm_loop, "keeping", lambda *given: Breaking(kept(*given)))
        with pytest.raises(Power):
            language.train(language_model, data, tmp_path / "a", **settings)
    assert resume.is_unfinished(tmp_path / "a")
    language.train(language_model, data, tmp_path / "a", resume=True, **settings)
    assert_same_weights(tmp_path / "whole", tmp_path / "a")
    assert_same_curves(tmp_path / "whole", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d.jsonl", "whole"]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_killed_in_the_middle(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """SIGKILL once a state is there, in a process of its own, and the same call with --resume."""
    data = tmp_path / "d.jsonl"
    if kind == "classifier":
        rows = make_rows(400)
        pairs = zip(rows.texts, rows.labels or (), strict=True)
        data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    else:
        language.write(data, language.rows(120))
    base = model if kind == "classifier" else language_model
    call = [sys.executable, "-m", "edgepeft", "train", "--model", base, "--data", data, "--threads", "1"]
    call = [*map(str, call), "--epochs", "12", "--patience", "99", "--dropout", "0.1"]
    subprocess.run([*call, "--out", tmp_path / "whole"], check=True, capture_output=True)
    out = tmp_path / "a"
    process = subprocess.Popen([*call, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = resume.training_folder(out)
    ends = time.monotonic() + 600
    while not [*folder.glob("state.pt"), *folder.glob("checkpoint-*/edgepeft.pt")]:
        assert process.poll() is None, "ended before a state was there"
        assert time.monotonic() < ends
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run([*call, "--out", str(out), "--resume"], check=True, capture_output=True)
    assert_same_weights(tmp_path / "whole", out)


def test_on_the_command_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    rows = make_rows(80)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    call = ["train", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "a"), "--epochs", "2"]
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(7))
        with pytest.raises(Power):
            CliRunner().invoke(main, [*call, "--threads", "1"], catch_exceptions=False)
    done = CliRunner().invoke(main, [*call, "--threads", "1"])
    assert "that was broken off is thrown away; --resume would have gone on with it" in done.stderr
    assert done.exit_code in {0, 1}
    assert CliRunner().invoke(main, [*call, "--resume", "--verdict"]).exit_code == 2
