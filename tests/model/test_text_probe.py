"""The text part of parity's probe: tokens are those of the tokenizer that an adapter was trained with, or nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from conftest import Bases, Models, save_lora

from edgepeft import runtime
from edgepeft.adapters.checkpoint import read_checkpoint
from edgepeft.bundle import Bundle, read_bundle
from edgepeft.errors import ParityError
from edgepeft.pipeline import add_slots, read_adapter, validate, write_bundle
from edgepeft.runtime import Runtime
from edgepeft.validate import parity as parity_module
from edgepeft.validate.mixed_probe import mixed_differences
from edgepeft.validate.parity import check_parity, peft_outputs
from edgepeft.validate.probe import BatchProbe, CausalProbe, bundle_probe
from edgepeft.validate.text_probe import own_tokenizer, with_text


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("text_probe"))


@pytest.fixture(scope="module")
def encoder(
    bases: Bases, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, dict[str, str], str]:
    """A text classifier with two adapters, their checkpoints and the base's folder."""
    folder = tmp_path_factory.mktemp("text_probe_encoder")
    base, model = bases("bert"), models("bert")
    sources = {
        name: str(
            save_lora(folder / name, model, task="text-classification", task_type="SEQ_CLS", r=2 + seed, seed=seed)
        )
        for seed, name in enumerate(("one", "two"))
    }
    adapters = [read_adapter(source, name=name, weights=base.weight) for name, source in sources.items()]
    return write_bundle(folder / "bundle", base, add_slots(base, adapters), adapters), sources, str(model)


def test_texts_chats_pairs_and_special_tokens(causal: Path, encoder: tuple[Bundle, dict[str, str], str]) -> None:
    bundle = read_bundle(causal)
    plain = bundle_probe(bundle)
    probe, texts = with_text(plain, bundle, "wide")
    assert isinstance(plain, CausalProbe)
    assert isinstance(probe, CausalProbe)
    assert texts is not None
    assert len(probe.batches) == len(plain.batches) + 1
    assert any("<|im_end|>" in sample for sample in texts.samples if isinstance(sample, str)), (
        "special tokens in a text"
    )
    assert isinstance(texts.samples[-1], list)
    assert probe.batches[-1].ids.shape[0] == len(texts.samples)
    encode = own_tokenizer(
        read_checkpoint(str(causal.parent / "wide")), str(causal.parent / "model"), bundle.manifest.max_length
    )
    assert encode is not None
    assert texts.difference(encode) == ""
    assert "the tokens of a chat are" in texts.difference(
        lambda sample: [1] if isinstance(sample, list) else encode(sample)
    )

    bundle, _, _ = encoder
    read, texts = with_text(bundle_probe(bundle), bundle, "one")
    assert isinstance(read, BatchProbe)
    assert texts is not None
    assert texts.samples[-1] == ("Was it good?", "It was not.")
    assert any("[SEP]" in sample for sample in texts.samples if isinstance(sample, str))
    assert read.batches[-1]["token_type_ids"].any(), "the second text of a pair"


def test_padding_on_the_left_where_the_tokenizer_asks_for_it(
    encoder: tuple[Bundle, dict[str, str], str], tmp_path: Path
) -> None:
    bundle, _, _ = encoder
    folder = Path(shutil.copytree(bundle.path, tmp_path / "left"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    from edgepeft.bundle import dump_manifest, hash_file

    opened = read_bundle(folder)
    files = {**opened.manifest.files, "tokenizer_config.json": hash_file(folder / "tokenizer_config.json")}
    (folder / "edgepeft.json").write_text(dump_manifest(opened.manifest.model_copy(update={"files": files})))
    left = read_bundle(folder)
    probe, _ = with_text(bundle_probe(left), left, "one")
    assert isinstance(probe, BatchProbe)
    right, mirrored = probe.batches[-2:]
    assert not mirrored["attention_mask"][:, 0].all()
    assert mirrored["attention_mask"][:, -1].all()
    for name, array in right.items():
        for row, mine, mask in zip(array, mirrored[name], right["attention_mask"], strict=True):
            assert row[mask == 1].tolist() == mine[len(mine) - mask.sum() :].tolist(), name


def test_other_tokens_than_the_adapter_was_trained_on(
    encoder: tuple[Bundle, dict[str, str], str], tmp_path: Path
) -> None:
    """A bundle with the base's tokenizer, and an adapter that was trained with another one."""
    bundle, sources, base = encoder
    check_parity(bundle, sources, base)
    own = Path(shutil.copytree(sources["one"], tmp_path / "own"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(Path(base) / name, own / name)
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    known = next(iter(texts_of(bundle)))
    swapped = sorted({vocabulary[t] for t in known if t in vocabulary})[:2]
    by_id = {number: word for word, number in vocabulary.items()}
    first, second = (by_id[number] for number in swapped)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ParityError, match=r"adapter 'one': the tokens of .* by the adapter's own tokenizer.*nothing was written"
    ):
        check_parity(bundle, {**sources, "one": str(own)}, base)
    found = validate(bundle.path, adapters={**sources, "one": str(own)}, base=base)
    failed = {gate.name: gate for gate in found.gates if not gate.ok}
    assert set(failed) == {"parity one"}
    assert "the tokens of" in failed["parity one"].message


def texts_of(bundle: Bundle) -> list[list[str]]:
    """The tokens of what the probe reads."""
    from edgepeft.runtime import TextEncoder

    _, texts = with_text(bundle_probe(bundle), bundle, "one")
    assert texts is not None
    encoder = TextEncoder(bundle)
    return [[encoder.token(number) for row in texts.ids for number in row]]


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_rows_of_a_mixed_batch(
    kind: str, encoder: tuple[Bundle, dict[str, str], str], causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "encoder":
        bundle, sources, base = encoder
    else:
        bundle, base = read_bundle(causal), str(causal.parent / "model")
        sources = {name: str(causal.parent / name) for name in ("wide", "narrow")}
    probe = bundle_probe(bundle)
    expected = {name: peft_outputs(bundle, name, source, base, probe) for name, source in sources.items()}
    model = runtime.open(bundle.path, threads=1)
    (difference,) = mixed_differences(model, expected, probe).values()
    assert difference < 1e-4
    # Rows that all get the first adapter are seen, though each adapter alone is right.
    forward = Runtime.forward

    def wrong(self: Runtime, inputs: Any, *, adapters: Any = None) -> dict[str, np.ndarray]:
        return forward(self, inputs, adapters=None if adapters is None else [adapters[0]] * len(adapters))

    monkeypatch.setattr(Runtime, "forward", wrong)
    (difference,) = mixed_differences(model, expected, probe).values()
    assert difference > 1e-2
    with pytest.raises(ParityError, match="a batch with rows of"):
        check_parity(bundle, sources, base)
    assert parity_module.TOLERANCE == 1e-4
