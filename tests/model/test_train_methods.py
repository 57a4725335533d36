"""Every method of PEFT is trained on a tiny BERT and written, or refused with a reason; and methods side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import make_rows, model, tensors  # noqa: F401 - the fixture is this module's too
from test_train_speed import build

from edgepeft.adapters.methods.registry import METHODS
from edgepeft.cli import main
from edgepeft.errors import EdgepeftError, InputError, UnsupportedAdapterError
from edgepeft.train import train_adapter
from edgepeft.train.compare import compare_methods
from edgepeft.train.methods import Settings, check_shipping, parse_peft, peft_type, usual_rate

# Upstream, seen November 2026: what peft 0.21.2 says when these adapters are made.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*is_gradient_checkpointing",
        "Failed to load the CUDA extension",
        "Setting boft_n_butterfly_factor",
        "Sparse invariant checks are implicitly disabled",
        "Specified to not (load|save) p?vera_A",
        "Unsupported layer type",
        "Low_cpu_mem_usage",
    )
]

#: What a network of 32 wide needs of methods whose defaults are for wider ones.
OPTIONS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "WAVEFT": {"n_frequency": 20},
    "OFT": {"oft_block_size": 8},
    "VBLORA": {"num_vectors": 12, "vector_length": 8, "topk": 2},
    "GRALORA": {"gralora_k": 2},
    "RANDLORA": {"projection_prng_key": 3},
    "ROAD": {"group_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "CARTRIDGE": {"num_virtual_tokens": 3},
}
#: Methods that cannot classify with a new head, and the words that say why.
REFUSED = {
    "XLORA": "cannot be trained for a bundle",
    "CPT": "language models only",
    "ADAPTION_PROMPT": "language models only",
    "SHADOW": "language models only",
    "TRAINABLE_TOKENS": "cannot save the new head",
    "POLY": "learns several tasks at once",
    "MULTITASK_PROMPT_TUNING": "learns several tasks at once",
}
_QUICK = {"LORA", "IA3", "LN_TUNING", "OFT", "LOHA", "ADALORA", "PROMPT_TUNING"}


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=() if name in _QUICK | set(REFUSED) else pytest.mark.slow) for name in METHODS]
)
def test_every_method_is_trained_or_refused(model: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    options = {
        "epochs": 1,
        "threads": 1,
        "progress": False,
        "method": kind.lower(),
        "peft": OPTIONS.get(kind),
        "rank": 4,
    }
    if kind in REFUSED:
        with pytest.raises(EdgepeftError, match=REFUSED[kind]):
            train_adapter(model, make_rows(60), tmp_path / "a", **options)
        assert not (tmp_path / "a").exists()
        return
    result = train_adapter(model, make_rows(60), tmp_path / "a", **options)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == kind
    assert result.trainable_parameters > 0
    saved = tensors(tmp_path / "a")
    assert any("classifier.weight" in name for name in saved)
    assert all(np.isfinite(value).all() for value in saved.values())
    assert result.after.loss != result.before.loss


def test_a_head_alone_is_an_adapter(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """It runs the network once a row, and its bundle answers as it did in training."""
    from edgepeft import runtime
    from edgepeft.pipeline import export

    rows, held = make_rows(200), make_rows(40, seed=3)
    options = {
        "method": "head-only",
        "epochs": 8,
        "threads": 1,
        "progress": False,
        "max_length": 32,
        "validation": held,
    }
    result = train_adapter(model, rows, tmp_path / "head", **options)
    assert result.cached_layers == 2
    assert result.trainable_parameters == 2 * 32 + 2
    export(model, {"mine": tmp_path / "head"}, tmp_path / "b")
    answers = runtime.open(tmp_path / "b").adapter("mine").predict(list(held.texts))
    right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
    # float32 against float32 of another order: a row within 1e-6 of even may fall to either side.
    assert abs(right - result.after.accuracy * 40) <= 1


@pytest.mark.parametrize(
    ("method", "ship", "says"),
    [
        ("oft", "swap", "cannot be swapped, only shipped as merge: it multiplies the weight by an orthogonal matrix"),
        ("lily", "merge", "cannot be merged, only shipped as bake"),
        ("full", None, "no adapter"),
        ("xlora", None, "cannot be trained for a bundle"),
    ],
)
def test_what_cannot_ship_is_refused_before_torch(tmp_path: Path, method: str, ship: Any, says: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=says):
        train_adapter("none", make_rows(40), tmp_path / "a", method=method, ship=ship)


def test_names_options_and_rates() -> None:
    assert (peft_type("DoRA"), peft_type("ln"), peft_type("prefix-tuning")) == ("LORA", "LN_TUNING", "PREFIX_TUNING")
    with pytest.raises(InputError, match="unknown method 'lorra'; did you mean 'lora'"):
        peft_type("lorra")
    assert usual_rate("full") < usual_rate("lora") < usual_rate("ia3")
    assert parse_peft(["r=4", "init_lora_weights=pissa", "use_dora=true"]) == {
        "r": 4, "init_lora_weights": "pissa", "use_dora": True,
    }  # fmt: skip
    with pytest.raises(InputError, match="expected key=value"):
        parse_peft(["r"])
    check_shipping("prefix_tuning", "CAUSAL_LM", "swap")
    assert Settings("dora", rank=4).describe() == "dora r=4, lr 0.001"


def test_an_option_that_the_method_has_not(model: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match="lora has no option 'use_dorra'; did you mean 'use_dora'"):
        train_adapter(model, make_rows(40), tmp_path / "a", peft={"use_dorra": True}, progress=False)


def test_methods_side_by_side(model: Path, tmp_path: Path) -> None:  # noqa: F811
    methods = ["lora", "dora", "ia3", "ln", "head-only", "full"]
    found = compare_methods(
        model, make_rows(160), methods, tmp_path / "best", epochs=2, threads=1, validation_fraction=0.25
    )
    assert [row.method for row in found.rows] == methods
    by_name = {row.method: row for row in found.rows}
    assert by_name["full"].ships == ""
    assert by_name["full"].share == 1.0
    assert (
        by_name["head-only"].trainable
        < by_name["ia3"].trainable
        < by_name["lora"].trainable
        < by_name["dora"].trainable
    )
    assert by_name["lora"].change is None
    config = json.loads((model / "config.json").read_text())
    wide, inner = config["hidden_size"], config["intermediate_size"]
    # Rank 8 at every linear layer: four of attention and two of the feed-forward part in each block, and the pooler.
    every = 8 * (config["num_hidden_layers"] * (4 * 2 * wide + 2 * (wide + inner)) + 2 * wide)
    assert by_name["lora"].trainable - by_name["head-only"].trainable == every
    for row in found.rows:
        assert row.score.lower <= row.score.estimate <= row.score.upper
        assert row.seconds_an_epoch > 0
    assert found.chosen in methods[:-1]
    assert max(row.score.estimate for row in found.rows if row.ships) == by_name[found.chosen].score.estimate
    assert found.adapter is not None
    assert found.adapter.after.accuracy == pytest.approx(by_name[found.chosen].score.estimate)
    assert (tmp_path / "best" / "adapter_model.safetensors").is_file()


def test_the_base_is_left_as_it_was(model: Path) -> None:  # noqa: F811
    """Each method starts from the checkpoint, whatever ran before it: the second of two equal ones is the first."""
    one = compare_methods(model, make_rows(100), ["full", "lora"], epochs=2, threads=1)
    other = compare_methods(model, make_rows(100), ["lora"], epochs=2, threads=1)
    assert one.rows[1].score == other.rows[0].score


def test_compare_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(80)
    data = tmp_path / "d.jsonl"
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    call = ["train", "--model", str(model), "--data", str(data), "--epochs", "1", "--threads", "1"]
    done = CliRunner().invoke(main, [*call, "--compare", "lora,head-only"])
    assert done.exit_code == 0, done.output
    assert "change from lora" in done.stdout
    assert "best that ships" in done.stdout
    done = CliRunner().invoke(main, [*call, "--compare", "lora,loro", "--json"])
    assert done.exit_code == 2
    assert "unknown method 'loro'" in json.loads(done.stdout)["error"]
    assert CliRunner().invoke(main, call).exit_code == 2
    done = CliRunner().invoke(
        main, [*call, "--out", str(tmp_path / "a"), "--method", "lora", "--peft", "r=2", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("trained_head", [True, False])
def test_every_linear_layer_of_a_head_that_is_saved_whole(model: Path, tmp_path: Path, trained_head: bool) -> None:  # noqa: F811
    """PEFT saves DistilBERT's ``pre_classifier`` whole, by the end of its name, and must not adapt it as well."""
    import transformers

    from edgepeft.pipeline import export, validate

    base = build(tmp_path / "base", "distilbert", model)
    if not trained_head:
        transformers.DistilBertModel.from_pretrained(base).save_pretrained(base)
    rows = make_rows(60)
    options: dict[str, Any] = {"epochs": 1, "threads": 1, "progress": False, "learning_rate": 1e-2}
    train_adapter(base, rows, tmp_path / "a", target_modules="all-linear", **options)
    saved = tensors(tmp_path / "a")
    assert "base_model.model.pre_classifier.weight" in saved
    assert len([name for name in saved if "lora_A" in name]) == 3 * 6
    export(base, {"mine": tmp_path / "a"}, tmp_path / "b")
    assert validate(tmp_path / "b", data={"mine": rows}, adapters={"mine": tmp_path / "a"}, base=str(base)).passed


def test_a_file_of_options(tmp_path: Path) -> None:
    """A config as PEFT writes it beside an adapter; what is not set, and what says which adapter it is, is left out."""
    from peft import LoraConfig

    LoraConfig(r=3, lora_alpha=5, init_lora_weights="pissa", target_modules=["query"]).save_pretrained(tmp_path)
    file = str(tmp_path / "adapter_config.json")
    found = parse_peft([file, "r=4"])
    assert (found["r"], found["lora_alpha"], found["init_lora_weights"]) == (4, 5, "pissa")
    assert found["target_modules"] == ["query"]
    assert not {"peft_type", "task_type", "base_model_name_or_path"} & set(found)
    with pytest.raises(InputError, match=r"is a config of lora, and --method is ia3"):
        parse_peft([file], "ia3")
    with pytest.raises(InputError, match=r"or FILE\.json"):
        parse_peft(["r"])
    with pytest.raises(InputError, match=r"none\.json"):
        parse_peft([str(tmp_path / "none.json")])
