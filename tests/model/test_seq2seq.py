"""Encoder-decoder bundles: two graphs, one adapter; what is forced and what is written equals PEFT.

The reference is PEFT's unmerged model in float32, whole sequences without a cache; the tolerance is 1e-4 of the largest
logit, as everywhere. Adapters' numbers are random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import save_lora
from encoder_decoder import MODELS, SEQ2SEQ, build_encoder_decoder

from edgepeft import runtime
from edgepeft.base.ragged import bundle_batches
from edgepeft.cli import main
from edgepeft.errors import InputError
from edgepeft.pipeline import add, export, quantize, validate
from edgepeft.runtime import Runtime

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_encoder_decoder(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def sources(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Path]]:
    made: dict[str, dict[str, Path]] = {}

    def get(kind: str) -> dict[str, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(f"{kind}-adapters")
            _, attention, everything = MODELS[kind]
            common = {"task": SEQ2SEQ, "task_type": "SEQ_2_SEQ_LM", "scale": 0.2}
            made[kind] = {
                "small": save_lora(root / "small", folders(kind), r=2, target_modules=attention, seed=1, **common),
                "wide": save_lora(root / "wide", folders(kind), r=5, target_modules=everything, seed=2, **common),
                "dora": save_lora(
                    root / "dora", folders(kind), target_modules=attention, use_dora=True, seed=3, **common
                ),
            }
        return made[kind]

    return get


@pytest.fixture(scope="module")
def bundles(
    folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            out = tmp_path_factory.mktemp(f"{kind}-bundle") / "bundle"
            chosen = {name: sources(kind)[name] for name in ("small", "dora")}
            done = export(folders(kind), chosen, out, slots="all-linear")
            assert all(p.max_difference <= TOLERANCE and p.changes_output for p in done.parity)
            made[kind] = out
        return made[kind]

    return get


def peft_writes(folder: Path, source: Path | None, batch: dict[str, np.ndarray], count: int) -> list[list[int]]:
    """Greedy generation by transformers, over PEFT's unmerged model; rows up to their end token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    wrapped = model if source is None else PeftModel.from_pretrained(model, source).eval()
    with torch.no_grad():
        ids = wrapped.generate(
            **{name: torch.from_numpy(array) for name, array in batch.items()},
            max_new_tokens=count, do_sample=False, num_beams=1,
        )  # fmt: skip
    end = model.config.eos_token_id
    rows = [row[1:] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("kind", list(MODELS))
def test_what_it_writes_is_what_peft_writes(
    kind: str, folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], bundles: Callable[[str], Path]
) -> None:
    model = runtime.open(bundles(kind))
    batches = bundle_batches(model.bundle, shapes=((3, 9), (1, 5)))
    written = {}
    for name in (None, "small", "dora", None):
        source = None if name is None else sources(kind)[name]
        model.use(name)
        written[name] = [model.generate_ids(batch, max_new_tokens=8) for batch in batches]
        assert written[name] == [peft_writes(folders(kind), source, batch, 8) for batch in batches], name
    assert written[None] != written["small"] != written["dora"]


def test_files_slots_and_a_later_adapter(
    folders: Callable[[str], Path],
    sources: Callable[[str], dict[str, Path]],
    bundles: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    import shutil

    own = Path(shutil.copytree(bundles("T5"), tmp_path / "own"))
    assert sorted(p.name for p in (own / "onnx").iterdir()) == [
        "decoder_with_past_model.onnx", "decoder_with_past_model.onnx_data", "encoder_model.onnx", "encoder_model.onnx_data",
    ]  # fmt: skip
    added = add(own, "wide", sources("T5")["wide"])
    assert added.changes_output
    result = validate(own)
    assert result.passed
    assert {p.adapter for p in result.parity} == {"small", "dora", "wide"}
    model = runtime.open(own)
    sites = {site for slot in model.manifest.slots.factored for site in slot.sites}
    assert {site.partition(".")[0] for site in sites} == {"encoder", "decoder"}
    (batch,) = bundle_batches(model.bundle, shapes=((2, 9),))

    def logits(chosen: Runtime) -> np.ndarray:
        active, decoder = chosen.snapshot(), chosen.seq2seq
        encoded = chosen.run_arrays(batch, active)
        feeds = {"input_ids": np.zeros((2, 1), np.int64), "encoder_attention_mask": batch["attention_mask"]}
        return decoder.step({**feeds, **decoder.empty(encoded, 2)}, active)["logits"]

    plain = logits(model)
    half = logits(model.use("small", scale=0.5))
    assert np.array_equal(half, logits(model.use({"small": 0.5})))
    assert not np.array_equal(half, logits(model.use({"small": 0.5, "wide": -1.0})))
    assert np.array_equal(plain, logits(model.use(None)))
    with pytest.raises(InputError, match="encoder-decoder of two graphs"):
        quantize(own, "int8")


def test_merged(folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    source = sources("T5")["wide"]
    done = export(folders("T5"), {"wide": source}, tmp_path / "merged", mode="merge")
    assert done.parity[0].max_difference <= TOLERANCE
    model = runtime.open(tmp_path / "merged")
    (batch,) = bundle_batches(model.bundle, shapes=((3, 9),))
    assert model.generate_ids(batch, max_new_tokens=8) == peft_writes(folders("T5"), source, batch, 8)


def test_texts_in_and_out(bundles: Callable[[str], Path]) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    done = call("run", bundles("T5"), "a good film", "the book was bad", "--adapter", "small", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    model = runtime.open(bundles("T5")).use("small")
    ids = model.generate_ids(model.encode(["a good film", "the book was bad"]))
    assert [row["generated_text"] for row in rows] == [model.encoder.decode(row) for row in ids]
    assert all(row["generated_text"] for row in rows)
    with pytest.raises(InputError, match="at least 1"):
        model.generate_ids(model.encode(["a"]), max_new_tokens=0)
