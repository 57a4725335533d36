"""``edgepeft train --watch`` and ``--report-to``: changed data train on from the last adapter; Trainer's reporters are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_train_language as language
from click.testing import CliRunner
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.cli import main
from edgepeft.cli.train_watch import watched
from edgepeft.errors import InputError, MissingExtraError
from edgepeft.train import ADAPTER_FILE, reporters, watch


class Ended(BaseException):
    """No more looks."""


def looking(*steps: Callable[[], None]) -> Callable[[float], None]:
    """A ``sleep`` during which one thing happens after another."""
    left = list(steps)

    def sleep(_: float) -> None:
        if not left:
            raise Ended
        left.pop(0)()

    return sleep


def nothing() -> None:
    """No change."""


def test_a_change_counts_once_it_is_whole(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.csv", tmp_path / "texts"
    file.write_text("1")
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    looks = watch.Changes(
        [file, folder],
        looking(
            nothing,
            lambda: file.write_text("12"),
            lambda: file.write_text("123"),  # still being written
            nothing,
            file.unlink,  # an editor replaces it
            lambda: file.write_text("1234"),
            nothing,
            file.touch,  # the same content
            nothing,
            lambda: (folder / "y.txt").write_text("y"),
            nothing,
        ),
    )
    assert looks.wait() == (file,)
    assert file.read_text() == "123"
    assert looks.wait() == (file,)
    assert file.read_text() == "1234"
    assert looks.wait() == (folder,)
    with pytest.raises(Ended):
        looks.wait()


def write_rows(file: Path, count: int, seed: int = 0) -> None:
    rows = make_rows(count, seed)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))


def test_training_again_from_the_last_adapter(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "a"
    write_rows(data, 160)
    records = []

    def kept() -> None:
        records.append(json.loads((out / ADAPTER_FILE).read_text()))

    steps = looking(
        lambda: (kept(), write_rows(data, 200, 3))[0],
        nothing,
        lambda: (kept(), data.write_text('{"text": "half a'))[0],  # an error, which is said
        nothing,
        lambda: (kept(), write_rows(data, 80, 4))[0],
        nothing,
        kept,
    )
    monkeypatch.setattr(watch.Changes.__init__, "__defaults__", (steps,))
    call = ["train", "--model", str(model), "--data", str(data), "--out", str(out), "--epochs", "2", "--threads", "1"]
    with pytest.raises(Ended):
        CliRunner().invoke(main, [*call, "--rank", "4", "--learning-rate", "1e-2", "--watch"], catch_exceptions=False)
    first, second, same, last = records
    assert first["start"] is None
    assert first["metrics"]["train_rows"] + first["metrics"]["validation_rows"] == 160
    assert second["start"] == {"folder": str(out), "head": True, "measure": "", "distances": {}}
    assert second["metrics"]["train_rows"] + second["metrics"]["validation_rows"] == 200
    # The scores before the second training are those of an adapter that has learnt the task already.
    assert second["metrics"]["before"]["loss"] < first["metrics"]["before"]["loss"]
    assert same == second
    assert last["metrics"]["train_rows"] + last["metrics"]["validation_rows"] == 80
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 4


def test_what_cannot_be_watched(model: Path, tmp_path: Path) -> None:  # noqa: F811
    data = tmp_path / "d.jsonl"
    write_rows(data, 80)
    call = ["train", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "a"), "--watch"]
    for more, told in ((["--json"], "--json prints one result"), (["--verdict"], "--watch is for the training of one")):
        done = CliRunner().invoke(main, [*call, *more])
        assert (done.exit_code, told in done.output) == (2, True), done.output
    with pytest.raises(InputError, match="--watch looks at files"):
        watched(lambda: None, tmp_path, ["org/data", None], {})


class Told:
    """Stands for a reporter: notes what Trainer's callbacks are told."""

    calls: list[tuple[str, Any, Any]] = []  # noqa: RUF012 - one list for all: the callback is made by its class

    def __init__(self) -> None:
        from transformers import TrainerCallback

        class Noting(TrainerCallback):
            logging_dir = None

            def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                Told.calls.append(("begin", args.run_name, more["model"].peft_config["default"].r))

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                Told.calls.append(("log", state.global_step, dict(logs)))

            def on_train_end(self, *_: Any, **__: Any) -> None:
                Told.calls.append(("end", self.logging_dir, None))

        self.made = Noting()


@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_reporters_of_trainer_are_told(
    model: Path,  # noqa: F811
    language_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", lambda: Told().made)
    monkeypatch.setattr(Told, "calls", [])
    if kind == "classifier":
        result = train(model, tmp_path / "mine", epochs=2, report_to=["tensorboard"])
        record = json.loads((tmp_path / "mine" / ADAPTER_FILE).read_text())["metrics"]
        score, expected = "eval_accuracy", [each["accuracy"] for each in record["epoch_scores"]]
    else:
        data = language.write(tmp_path / "d.jsonl", language.rows(44))
        result = language.train(language_model, data, tmp_path / "mine", epochs=2, report_to=["tensorboard"])
        record = json.loads((tmp_path / "mine" / ADAPTER_FILE).read_text())["metrics"]
        score = "eval_perplexity"
        expected = [each["perplexity"] for each in record["epoch_scores"]]
    assert result.epochs == 2
    begins = [call for call in Told.calls if call[0] == "begin"]
    assert begins == [("begin", "mine", 8)]
    losses = {step: logs["loss"] for what, step, logs in Told.calls if what == "log" and "loss" in logs}
    assert list(losses) == list(range(1, len(record["step_loss"]) + 1))
    assert list(losses.values()) == pytest.approx(record["step_loss"], abs=1e-4)
    scores = [logs[score] for what, step, logs in Told.calls if what == "log" and score in logs and step]
    assert scores == pytest.approx(expected)
    ended = [folder for what, folder, _ in Told.calls if what == "end"]
    assert [Path(folder).parent for folder in ended] == [tmp_path / "runs" / "mine"]


def test_tensorboard_itself(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(model, tmp_path / "mine", epochs=1, report_to=["tensorboard"])
    (file,) = (tmp_path / "runs" / "mine").rglob("events.out.tfevents.*")
    assert b"eval/accuracy" in file.read_bytes()


def test_reporters_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        reporters.callbacks_of(["tensorbord"], tmp_path)

    def missing() -> None:
        raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", missing)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        reporters.callbacks_of(["wandb"], tmp_path)
    assert reporters.callbacks_of([], tmp_path) == []
