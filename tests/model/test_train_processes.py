"""Training in several processes that a launcher started: the adapter of one process, written and told of once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_train_language as language
from click.testing import CliRunner
from same_training import assert_same_weights
from test_train import make_rows, model  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.train import ADAPTER_FILE, processes, resume

#: Weights of one process and of two: gradients are sums in another order, float32, over some dozen steps of AdamW. AdamW divides by
#: the root of squared gradients, so where these are near 0 a rounding becomes a part of a step (1e-2).
TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes._SIZES, *processes._PLACES):
        monkeypatch.delenv(name, raising=False)


def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.launched() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a batch system may say so; without a place it is no launcher
    assert processes.launched() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert processes.launched() == (2, 4)
    assert not processes.is_first()
    monkeypatch.setenv("RANK", "0")
    assert processes.is_first()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert processes.launched() == (1, 3)


def test_a_process_alone_is_its_own_group() -> None:
    import torch

    group = processes.Group()
    rows, tensor = [1, 2, 3], torch.ones(2)
    assert group.share(rows) is rows
    assert group.gathered("a") == ["a"]
    assert group.from_first("a") == "a"
    group.add_up([tensor])
    group.same([tensor])
    group.wait()
    assert tensor.tolist() == [1, 1]
    shares = [processes.Group(place, 3).share(list(range(8))) for place in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def write(path: Path, rows: Examples) -> Path:
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    return path


def test_what_runs_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Refused, and said by the first process only."""
    data = write(tmp_path / "d.jsonl", make_rows(80))
    common = ["--model", str(model), "--data", str(data)]
    calls = [
        ["tune", *common, "--out", str(tmp_path / "a")],
        *(["train", *common, "--out", str(tmp_path / "a"), *more] for more in (["--watch"], ["--modules", "auto"])),
        *(["train", *common, *more] for more in (["--compare", "lora,ia3"], ["--verdict"])),
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        for call in calls:
            done = CliRunner().invoke(main, call)
            assert done.exit_code == 2
            assert done.stdout == ""
            said = "runs in one process, and a launcher started 2; call it without one"
            assert (said in done.stderr) == (rank == "0"), done.stderr
        done = CliRunner().invoke(main, ["train", *common, "--label", "none", "--out", str(tmp_path / "a")])
        assert done.exit_code == 2
        assert bool(done.stderr) == (rank == "0")
    assert not (tmp_path / "a").exists()


def test_another_number_of_processes_does_not_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The random generators of each process are in the state."""
    resume.Keeper(tmp_path / "a", resume.call_of({}, "base", []), resume=False).begin()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"processes \(was None, is 2\) changed since"):
        resume.Keeper(tmp_path / "a", resume.call_of({}, "base", []), resume=True)


def launch(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["classifier", "language", "packed", "classifier-mixed", "packed-mixed"])
def test_two_processes_train_the_adapter_of_one(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """The last batch of an epoch has one row, of which the second process gets none."""
    data, held = tmp_path / "d.jsonl", tmp_path / "h.jsonl"
    call = ["-m", "edgepeft", "train", "--data", data, "--validation", held, "--threads", "1", "--patience", "99"]
    mixed = kind.endswith("-mixed")
    kind = kind.removesuffix("-mixed")
    if mixed:
        call += ["--data", tmp_path / "e.jsonl", "--mix-temperature", "4"]
    if kind == "classifier":
        rows = make_rows(145)
        write(tmp_path / "e.jsonl", rows.select(range(100, 145)))
        write(data, rows.select(range(100)) if mixed else rows), write(held, make_rows(61, seed=5))
        call += ["--model", model, "--batch-size", "16", "--learning-rate", "1e-2"]
    else:
        language.write(tmp_path / "e.jsonl", language.rows(41)[30:])
        language.write(data, language.rows(41)[: 30 if mixed else 41])
        language.write(held, language.others(21, 5))
        call += ["--model", language_model, "--batch-size", "8", "--epochs", "2"]
        if kind == "packed":
            call += ["--packing", "--max-length", "64", "--gradient-accumulation", "2", "--batch-size", "2"]
    whole = launch(1, *call, "--out", tmp_path / "one")
    both = launch(2, *call, "--out", tmp_path / "two")
    assert whole.returncode == both.returncode == 0, both.stderr
    assert len(both.stdout.splitlines()) == len(whole.stdout.splitlines())
    assert both.stderr.count("training: ") == both.stderr.count("trained: ") == 1
    assert_same_weights(tmp_path / "one", tmp_path / "two", TOLERANCE)
    one, two = (json.loads((tmp_path / name / ADAPTER_FILE).read_text())["metrics"] for name in ("one", "two"))
    assert two["step_loss"] == pytest.approx(one["step_loss"], abs=1e-4)
    assert two["best_epoch"] == one["best_epoch"]
    measured = "loss" if kind == "classifier" else "nll"
    for name in ("before", "after"):
        assert two[name][measured] == pytest.approx(one[name][measured], abs=1e-4)
    if kind != "classifier":
        assert two["train_tokens"] == one["train_tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "e.jsonl", "h.jsonl", "one", "two"]


#: Trains, is broken off in both processes, and goes on.
_BROKEN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from edgepeft.train import loop, resume, train_adapter, train_language_adapter
from edgepeft.train import lm_loop
from edgepeft.train.progress import NoBar

class Power(BaseException):
    pass

class Breaking(NoBar):
    def step(self, done):
        if done == 7:
            raise Power

kind, base, data, out = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
resume.EVERY_S = 0.0
if kind == "classifier":
    call, options = train_adapter, {"dropout": 0.2, "learning_rate": 1e-2, "threads": 1, "progress": False}
    def broken():
        kept, loop._bar = loop._bar, lambda *_: Breaking()
        return lambda: setattr(loop, "_bar", kept)
else:
    from transformers import TrainerCallback
    call, options = train_language_adapter, {"dropout": 0.2, "threads": 1, "progress": False, "epochs": 2}
    class Stop(TrainerCallback):
        def __init__(self, inner):
            self.inner = inner
        def on_step_end(self, *given, **more):
            self.inner.on_step_end(*given, **more)
        def on_save(self, args, state, control, **more):
            self.inner.on_save(args, state, control, **more)
            if state.global_step == 4:
                raise Power
    def broken():
        kept = lm_loop.keeping
        lm_loop.keeping = lambda *given: Stop(kept(*given))
        return lambda: setattr(lm_loop, "keeping", kept)
call(base, data, out / "whole", **options)
mend = broken()
try:
    call(base, data, out / "a", **options)
    raise SystemExit("was not broken off")
except Power:
    mend()
call(base, data, out / "a", resume=True, **options)
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_both_go_on_where_they_were(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """To the same weights, dropout included, whose masks each process draws from a generator of its own."""
    data, script = tmp_path / "d.jsonl", tmp_path / "s.py"
    if kind == "classifier":
        write(data, make_rows(100))
    else:
        language.write(data, language.rows(44))
    script.write_text(_BROKEN)
    base = model if kind == "classifier" else language_model
    done = launch(2, script, kind, base, data, tmp_path, Path(processes.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "a", 0.0)  # launched on processors
    assert not resume.is_unfinished(tmp_path / "a")
