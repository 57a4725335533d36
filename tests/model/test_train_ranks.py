"""Sensitivity maps on a tiny BERT: gradients against their definition, ranks within their budget, and the better kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import make_rows, model, tensors  # noqa: F401 - the fixture is this module's too

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.html_report import write_html_report
from edgepeft.train import ADAPTER_FILE
from edgepeft.train.allocation import SiteCost, byte_costs, uniform_cost, uniform_rank
from edgepeft.train.allocation import allocate as allocate_within
from edgepeft.train.choose_ranks import train_with_chosen_ranks
from edgepeft.train.sensitivity import SiteScore, measure_sites
from edgepeft.train.sensitivity_map import drawn_map
from edgepeft.train.source import load_split
from edgepeft.train.workbench import open_workbench


def site(name: str, spectrum: list[float], width: int = 10) -> SiteScore:
    values = np.array(spectrum, dtype=float)
    return SiteScore(name, width, width, values.sum(), 1.0, 1.0, 1.0, values, values / values.sum())


def allocate(sites: list[SiteScore], budget: float) -> dict[str, int]:
    return allocate_within(sites, budget, byte_costs(sites))


def bench(folder: Path, rows: Examples) -> Any:
    import torch

    options = {"text": "text", "label": "label", "pair": None, "seed": 0}
    split = load_split(rows, validation=None, fraction=0.2, **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return open_workbench(folder, split, None)


def test_ranks_go_where_the_next_one_is_worth_most() -> None:
    """Hand-checked: of a=[9, 4, 1], b=[5, 3, 0.5] the four largest are 9, 5, 4, 3."""
    sites = [site("l.0.a", [9, 4, 1]), site("l.1.b", [5, 3, 0.5])]
    assert allocate(sites, 4 * 80) == {"l.0.a": 2, "l.1.b": 2}
    assert allocate(sites, 3 * 80 + 79) == {"l.0.a": 2, "l.1.b": 1}
    assert allocate(sites, 80) == {"l.0.a": 1}
    with pytest.raises(InputError, match="below one rank of the cheapest layer"):
        allocate(sites, 79)


def test_worth_is_for_the_bytes() -> None:
    """A layer of ten times the width must be worth ten times as much."""
    sites = [site("l.0.wide", [12, 1], width=100), site("l.0.slim", [2, 1.5], width=10)]
    assert allocate(sites, 800) == {"l.0.slim": 2}
    assert allocate(sites, 1000) == {"l.0.wide": 1, "l.0.slim": 2}


def test_the_greedy_allocation_is_the_best_there_is() -> None:
    """Against every allocation, on random falling spectra of layers of one width."""
    import itertools

    generator = np.random.default_rng(5)
    for _ in range(20):
        sites = [site(f"l.{i}.x", sorted(generator.random(4), reverse=True)) for i in range(3)]
        ranks = allocate(sites, 5 * 80)
        worth = sum(each.spectrum[: ranks.get(each.name, 0)].sum() for each in sites)
        best = max(
            sum(each.spectrum[:rank].sum() for each, rank in zip(sites, given, strict=True))
            for given in itertools.product(range(5), repeat=3)
            if sum(given) == 5
        )
        assert worth == pytest.approx(best)


def test_scores_are_what_autograd_gives(model: Path) -> None:  # noqa: F811
    """Taken again from one batch of all rows, the head trained alone by the same seed: float32 sums in another order."""
    rows = make_rows(40)
    found = measure_sites(bench(model, rows), batches=1, batch_size=64, seed=0)
    assert [each.name.rpartition(".")[2] for each in found][:4] == ["query", "key", "value", "dense"]
    assert len(found) == 2 * 6 + 1  # six linear layers a block, and the pooler
    assert not any("classifier" in each.name for each in found)
    for each in found:
        # One batch: the gradient of the mean loss is the mean gradient, so both norms are of the same tensor.
        assert each.gradient == pytest.approx(each.fisher, rel=1e-4)
        assert each.gradient == pytest.approx(each.spectrum.sum(), rel=1e-6)
        assert (np.diff(each.spectrum) <= 1e-12).all()
        assert each.inputs.sum() == pytest.approx(1.0)
        assert each.taylor > 0
    again = measure_sites(bench(model, rows), batches=1, batch_size=64, seed=0)
    assert [each.name for each in again] == [each.name for each in found]


def test_the_map_is_drawn() -> None:
    sites = [site("e.layer.0.query", [9, 1]), site("e.layer.1.query", [1, 0.5]), site("pooler.dense", [2, 1])]
    rows = drawn_map(sites, {"e.layer.0.query": 3}, byte_costs(sites))
    assert rows[0] == ("layer", "-", "0", "1")
    assert rows[1] == ("query", "", "█ 3", "▒ ·")
    assert uniform_cost(sites, ["query"], 2, byte_costs(sites)) == 2 * 2 * 80


def test_the_better_of_chosen_and_uniform_is_kept(model: Path, tmp_path: Path) -> None:  # noqa: F811
    found = train_with_chosen_ranks(
        model, make_rows(160), tmp_path / "a", rank=2, epochs=3, learning_rate=1e-2, threads=1, validation_fraction=0.25
    )
    budget = 2 * 2 * 2 * 4 * (32 + 32)  # rank 2, query and value of two blocks, float32
    assert (found.budget, found.unit) == (budget / 1e6, "MB")
    assert found.uniform_rank == 2
    widths = {"intermediate.dense": 96, "output.dense": 96, "attention.output.dense": 64}
    taken = sum(
        4 * rank * next((width for end, width in sorted(widths.items()) if name.endswith(end)), 64)
        for name, rank in found.ranks.items()
    )
    assert 0 < taken <= budget
    scores = {"chosen": found.chosen.estimate, "uniform": found.uniform.estimate}
    assert scores[found.kept] == max(scores.values())
    assert found.adapter.after.accuracy == pytest.approx(scores[found.kept])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    ranks = found.ranks if found.kept == "chosen" else None
    saved = {name: value.shape[0] for name, value in tensors(tmp_path / "a").items() if "lora_A" in name}
    assert all(value.size <= 96 * 64 for value in tensors(tmp_path / "a").values())
    if ranks is not None:
        assert {
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): r for name, r in saved.items()
        } == ranks
        assert config["rank_pattern"] == ranks
    else:
        assert set(saved.values()) == {2}


def test_chosen_ranks_ship(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Ranks and scalings of their own at each layer reach the bundle: it answers as PEFT does."""
    from edgepeft.pipeline import export, validate
    from edgepeft.train.adapter import finish
    from edgepeft.train.loop import Schedule, fit
    from edgepeft.train.methods import Settings

    rows = make_rows(80)
    place = bench(model, rows)
    chosen = (("bert.encoder.layer.0.attention.self.query", 3), ("bert.encoder.layer.1.output.dense", 5))
    adapted = place.fresh(Settings(rank=4, alpha=8, ranks=chosen), seed=1)
    schedule = Schedule(2, 1e-2, 16, 0, None, 1)
    course = fit(adapted, place.base.tokenizer, place.rows, place.held, schedule, place.problem, progress=False)
    finish(place, adapted, course, tmp_path / "a", {}, 1.0)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["alpha_pattern"] == {name: rank * 2.0 for name, rank in chosen}
    export(model, {"mine": tmp_path / "a"}, tmp_path / "b")
    assert validate(tmp_path / "b", data={"mine": rows}, adapters={"mine": tmp_path / "a"}, base=str(model)).passed


def test_modules_auto_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(80)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
    )
    call = ["train", "--model", str(model), "--data", str(tmp_path / "d.jsonl"), "--epochs", "1", "--threads", "1"]
    call += ["--out", str(tmp_path / "a")]
    done = CliRunner().invoke(main, [*call, "--modules", "auto", "--rank-budget-mb", "0.01", "--sensitivity", "eva"])
    assert done.exit_code == 0, done.output
    assert "ranks kept" in done.stdout
    assert "attention.self.query" in done.stdout
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["sensitivity"]
    assert (record["measure"], record["budget"], record["unit"]) == ("eva", 10_000, "byte")
    assert len(record["sites"]) == 13
    assert 0 < sum(site["rank"] * site["rank_bytes"] for site in record["sites"]) <= 10_000
    assert all(site["worth"] * site["rank_bytes"] <= 1 + 1e-9 for site in record["sites"])  # shares of a variance
    assert "the map as a page: edgepeft report" in done.stdout
    assert "a: what layers are worth" in write_html_report([tmp_path / "a"]).path.read_text()
    for wrong in (
        ["--rank-budget-mb", "1"],
        ["--modules", "auto", "--method", "ia3"],
        ["--modules", "auto", "--rank-budget-mb", "1e-6"],
    ):
        assert CliRunner().invoke(main, [*call, *wrong]).exit_code == 2, wrong


def test_a_layer_that_costs_to_open_gets_several_ranks_or_none() -> None:
    """By hand: opening costs 4 and a rank 1. Of gains 4, 3, 2, 1 three ranks are the best for their cost."""
    sites = [site("l.0.a", [4, 3, 2, 1]), site("l.1.b", [6, 0.1])]
    costs = {"l.0.a": SiteCost(1.0, 4.0), "l.1.b": SiteCost(1.0, 4.0)}
    # 9 for 7 with three ranks, which is more than 7 for 6 or 10 for 8; then 6 for 5 at the other layer, and last 1 for 1.
    assert allocate_within(sites, 7, costs) == {"l.0.a": 3}
    assert allocate_within(sites, 8, costs) == {"l.0.a": 4}
    assert allocate_within(sites, 12, costs) == {"l.0.a": 3, "l.1.b": 1}
    # Three ranks do not fit, two do.
    assert allocate_within(sites[:1], 6, costs) == {"l.0.a": 2}
    assert (costs["l.0.a"].of(0), costs["l.0.a"].of(2)) == (0, 6)
    with pytest.raises(InputError, match=r"a rank budget of 4 ms is below one rank of the cheapest layer \(5 ms\)"):
        allocate_within(sites, 4, costs, unit="ms")


def test_ranks_never_cost_more_than_the_budget() -> None:
    """And what is left would not pay another rank that is worth something."""
    generator = np.random.default_rng(1)
    for _ in range(50):
        sites = [site(f"l.{i}.x", sorted(generator.random(5), reverse=True)) for i in range(6)]
        costs = {s.name: SiteCost(float(generator.uniform(0.1, 1)), float(generator.uniform(0, 2))) for s in sites}
        budget = float(generator.uniform(3, 12))
        ranks = allocate_within(sites, budget, costs)
        left = budget - sum(costs[name].of(rank) for name, rank in ranks.items())
        assert left >= -1e-9
        for s in sites:
            rank = ranks.get(s.name, 0)
            assert rank == 5 or costs[s.name].of(rank + 1) - costs[s.name].of(rank) > left - 1e-9


def test_the_uniform_rank_of_a_budget() -> None:
    sites = [site("l.0.query", [1]), site("l.1.query", [1]), site("l.0.value", [1])]
    costs = {s.name: SiteCost(2.0, 3.0) for s in sites}
    assert uniform_cost(sites, ["query"], 4, costs) == 22
    assert [uniform_rank(sites, ["query"], budget, costs) for budget in (9, 10, 13, 14, 22)] == [0, 1, 1, 2, 4]


def test_the_cost_of_ranks_is_measured() -> None:
    """Wide layers cost more than narrow ones, by far; a rank costs something, and no opening less than nothing."""
    from edgepeft.targets import load_target
    from edgepeft.train.rank_cost import measure_rank_costs

    here = load_target("linux-x64-cpu")
    if here.here() is not None:
        pytest.skip(f"milliseconds of this machine: {here.here()}")
    costs = measure_rank_costs([(32, 32), (512, 1024), (32, 32)], here)
    assert list(costs) == [(32, 32), (512, 1024)]
    assert all(cost.rank > 0 and cost.opening >= 0 for cost in costs.values())
    # 24 times the work a rank; what disturbs a run on a shared machine is far below that.
    assert costs[512, 1024].of(64) > 4 * costs[32, 32].of(64)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("web-wasm", "it is executed by web"),
        ("android-arm64-cpu", "it is executed by"),
        ("linux-x64-webgpu", "it is executed by local-webgpu"),
        ("windows-x64-cpu", "is windows x86_64, this machine is linux"),
    ],
)
def test_a_target_that_cannot_be_measured_here(name: str, said: str) -> None:
    import sys

    from edgepeft.targets import load_target
    from edgepeft.train.rank_cost import check_measurable

    if sys.platform != "linux":
        pytest.skip("names of other machines")
    with pytest.raises(InputError, match=f"milliseconds of {name}: .*{said}.*Give --rank-budget-mb"):
        check_measurable(load_target(name))


def test_a_budget_of_milliseconds_on_the_command_line(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Costs that are given: a rank takes a microsecond and a layer three, so 21 pay rank 2 at four layers (query and value)."""
    from edgepeft.train import rank_cost

    asked: list[Any] = []

    def costs(widths: Any, target: Any, *, gain: bool) -> Any:
        asked.append((sorted(set(widths)), target.name, gain))
        return {pair: SiteCost(0.001, 0.003) for pair in asked[-1][0]}

    monkeypatch.setattr(rank_cost, "measure_rank_costs", costs)
    monkeypatch.setattr(rank_cost, "check_measurable", lambda target: None)
    rows = make_rows(80)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    call = ["train", "--model", str(model), "--data", str(data), "--epochs", "1", "--threads", "1"]
    call += ["--out", str(tmp_path / "a"), "--modules", "auto"]
    done = CliRunner().invoke(main, [*call, "--rank-budget-ms", "0.021"])
    assert done.exit_code in {0, 1}, done.output
    assert asked == [([(32, 32), (32, 64), (64, 32)], "linux-x64-cpu", False)]
    assert "0.021 ms each on linux-x64-cpu" in done.stdout
    assert "uniform r=2 at query, value" in done.stdout
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert (record["sensitivity"]["budget"], record["sensitivity"]["unit"]) == (0.021, "ms")
    assert record["arguments"]["target"] == "linux-x64-cpu"
    taken = sum(0.003 + 0.001 * each["rank"] for each in record["sensitivity"]["sites"] if each["rank"])
    assert 0 < taken <= 0.021 + 1e-9
    assert "worth for a millisecond" in write_html_report([tmp_path / "a"]).path.read_text()
    for wrong, said in (
        (["--rank-budget-ms", "0.01"], "is below rank 1 at query, value (0.016 ms)"),
        (["--rank-budget-ms", "1", "--rank-budget-mb", "1"], "two budgets"),
        (["--target", "linux-x64-cpu"], "--target is for that budget alone"),
        (["--rank-budget-ms", "0"], "budget_ms must be greater than 0"),
        (["--rank-budget-ms", "1", "--target", "no-such"], "no-such"),
    ):
        done = CliRunner().invoke(main, [*call, *wrong])
        assert done.exit_code == 2, wrong
        assert said in " ".join(done.stderr.split()), done.stderr
