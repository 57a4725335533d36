"""``edgepeft search`` on a tiny BERT: the study file, trials, two workers, a killed one, and the front."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_train import make_rows, model  # noqa: F401 - the fixture is this module's too

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.search import Choice, Range, TrialRow, read_study, run_study
from edgepeft.search.front import front_of
from edgepeft.search.study import _below

pytest.importorskip("optuna")


def write(path: Path, rows: Examples) -> Path:
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    return path


def study_of(model: Path, folder: Path, trials: int, more: str = "", space: str = "") -> Path:  # noqa: F811
    write(folder / "train.jsonl", make_rows(120))
    write(folder / "held.jsonl", make_rows(60, seed=5))
    (folder / "study.toml").write_text(
        f"""
[study]
trials = {trials}
{more}
[data]
validation = "held.jsonl"
[measure]
tokens = 8
runs = 10
[space]
model = {json.dumps(str(model))}
data = "train.jsonl"
variant = ["fp32", "int8"]
rank = {{ from = 2, to = 8, log = true }}
learning_rate = {{ from = 1e-3, to = 2e-2, log = true }}
method = ["lora", "ia3"]
epochs = 2
{space}
"""
    )
    return folder / "study.toml"


def test_a_study_file(model: Path, tmp_path: Path) -> None:  # noqa: F811
    study = read_study(study_of(model, tmp_path, 7))
    assert (study.name, study.folder, study.trials) == ("study", tmp_path / "study", 7)
    assert study.space["rank"] == Range(2, 8, log=True, whole=True)
    assert study.space["data"] == Choice((str(tmp_path / "train.jsonl"),))
    assert study.space["epochs"] == Choice((2,))
    assert study.storage == str(tmp_path / "study" / "journal.log")


@pytest.mark.parametrize(
    ("more", "space", "says"),
    [
        ("trails = 3", "", r"\[study\] has no key 'trails'.*did you mean"),
        ("prune = 1", "", "study.prune must be a true or false, found 1"),
        ('keep = "none"', "", "kept of the front or of all"),
        ("", "ranks = 3", r"\[space\] has no key 'ranks'"),
        ("", "alpha = { from = 8, to = 8 }", "from must be smaller"),
        ("", "dropout = { from = 0, to = 0.5, log = true }", "above 0 with log"),
        ("", "alpha = { low = 1 }", "is a range"),
        ("", "batch_size = [16, 16]", "names a value twice"),
        ("", "batch_size = [1.5]", "takes whole numbers, found 1.5"),
        ("", "target_modules = { from = 1, to = 2 }", "takes texts, not a range"),
        ("", "seed = []", "is an empty list"),
    ],
)
def test_what_a_study_file_refuses(model: Path, tmp_path: Path, more: str, space: str, says: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=says):
        read_study(study_of(model, tmp_path, 2, more, space))


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a study is a TOML file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("x = ")
    with pytest.raises(InputError, match="not valid TOML"):
        read_study(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("[space]\nmodel = 'x'\ndata = 'y'\n")
    with pytest.raises(InputError, match="needs validation"):
        read_study(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("[data]\nvalidation = 'x'\n[space]\nmodel = 'x'\n")
    with pytest.raises(InputError, match=r"\[space\] needs data"):
        read_study(tmp_path / "a.toml")


def row(number: int, accuracy: float | None, p50_ms: float, mb: float) -> TrialRow:
    return TrialRow(number, "complete", {}, "", accuracy, 0, 1, p50_ms, mb)


def test_the_front_is_what_nothing_beats() -> None:
    rows = [row(0, 0.9, 2, 10), row(1, 0.9, 2, 10), row(2, 0.8, 1, 10), row(3, 0.8, 2, 10), row(4, None, 0, 0)]
    assert front_of(rows) == {0, 1, 2}


def test_trials_end_with_a_front_and_go_on(model: Path, tmp_path: Path) -> None:  # noqa: F811
    from edgepeft.bundle import read_bundle

    file = study_of(model, tmp_path, 3)
    done = CliRunner().invoke(main, ["search", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 3
    for trial in found["trials"]:
        folder = tmp_path / "study" / trial["folder"]
        assert (folder / "adapter" / "adapter_config.json").is_file()
        assert (folder / "bundle").is_dir() == trial["on_front"]
        assert trial["lower"] < trial["accuracy"] < trial["upper"]
        if trial["on_front"]:
            manifest = read_bundle(folder / "bundle").manifest
            size = sum(manifest.files[name].bytes for name in manifest.deployed(trial["values"]["variant"])) / 1e6
            assert trial["mb"] == pytest.approx(size)
    saved = json.loads((tmp_path / "study" / "report" / "search.json").read_text())
    assert saved["kind"] == "search"
    page = Path(found["page"]).read_text()
    assert "Accuracy against MB on a device" in page
    more = run_study(replace(read_study(file), trials=4), worker=1)
    assert [trial.number for trial in more.trials] == [0, 1, 2, 3]
    assert [trial.accuracy for trial in more.trials[:3]] == [trial["accuracy"] for trial in found["trials"]]


def test_another_space_is_another_study(model: Path, tmp_path: Path) -> None:  # noqa: F811
    file = study_of(model, tmp_path, 1)
    run_study(read_study(file), worker=0)
    file.write_text(file.read_text().replace("to = 8,", "to = 16,"))
    with pytest.raises(InputError, match="begun with another space"):
        run_study(read_study(file))
    file.write_text(file.read_text().replace("[study]", '[study]\nstorage = "postgresql://me:secret@localhost:1/none"'))
    with pytest.raises(InputError, match="cannot be reached") as raised:
        run_study(read_study(file))
    assert "secret" not in str(raised.value)


def test_a_trial_that_cannot_be_made_is_told_and_the_search_goes_on(model: Path, tmp_path: Path) -> None:  # noqa: F811
    file = study_of(model, tmp_path, 2)
    file.write_text(file.read_text().replace('method = ["lora", "ia3"]', 'target_modules = ["nowhere"]'))
    done = CliRunner().invoke(main, ["search", str(file), "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["failed", "failed"]
    assert "named 'nowhere'" in found["trials"][0]["why"]


def test_below_the_median_of_others_at_the_same_epoch() -> None:
    class Past:
        def __init__(self, number: int, curve: list[float], base: str = "m") -> None:
            self.number, self.user_attrs = number, {"curve": curve, "values": {"model": base, "data": "d"}}

    class Study:
        def __init__(self, trials: list[Past]) -> None:
            self.trials = trials

        def get_trials(self, deepcopy: bool) -> list[Past]:
            return self.trials

    mine: dict[str, Any] = {"model": "m", "data": "d"}
    past = [Past(i, [0.5 + i / 10, 0.9]) for i in range(4)]  # .5 .6 .7 .8 at the first epoch
    assert _below(Study(past), 9, mine, [0.64])
    assert not _below(Study(past), 9, mine, [0.66])
    assert not _below(Study(past), 9, mine, [0.2, 0.9])
    assert not _below(Study(past[:3]), 9, mine, [0.1])
    assert not _below(Study([*past[:3], Past(3, [0.9], "other")]), 9, mine, [0.1])


@pytest.mark.slow
@pytest.mark.e2e
def test_two_workers_share_a_study_and_one_is_killed(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The trial of the killed one goes on in its folder, and there are as many trials as were asked for."""
    file = study_of(model, tmp_path, 6, "seed = 3")
    call = [sys.executable, "-m", "edgepeft", "search", str(file), "--json"]
    victim = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    survivor = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    folder = tmp_path / "study"
    ends = time.monotonic() + 600
    # A trial of either is under way, and an adapter is there.
    while not [*folder.glob("trial-*/adapter/adapter_config.json")]:
        assert victim.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    out, _ = survivor.communicate(timeout=1200)
    assert survivor.returncode == 0
    found = json.loads(out)
    done = [trial for trial in found["trials"] if trial["state"] in {"complete", "pruned"}]
    assert len(done) == len(found["trials"]) == 6
    assert len({trial["folder"] for trial in done}) == 6
    assert len([*folder.glob("trial-*")]) == 6


def test_without_ray(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(main, ["search", str(study_of(model, tmp_path, 2)), "--ray", "local"])
    assert done.exit_code == 2
    assert "needs Ray: pip install 'edgepeft[ray]'" in done.stderr


@pytest.mark.slow
@pytest.mark.e2e
def test_two_workers_on_a_local_ray(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Both take trials of the same study; each has a log of its own beside them."""
    pytest.importorskip("ray")
    file = study_of(model, tmp_path, 6)
    call = [sys.executable, "-m", "edgepeft", "search", str(file), "--ray", "local", "--workers", "2", "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["state"] for row in found["trials"]].count("complete") + sum(
        row["state"] == "pruned" for row in found["trials"]
    ) == 6
    logs = sorted((tmp_path / "study").glob("worker-*.log"))
    assert len(logs) == 2
    assert all("accuracy" in log.read_text() for log in logs)
    assert "trial 0: " in done.stderr
    assert found["front"]
