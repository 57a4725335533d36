"""Folders without ``tokenizer.json``: converted by transformers, and the same tokens as transformers' own tokenizer gives."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Models
from tokenizers import Tokenizer

from edgepeft import pipeline, runtime
from edgepeft.base import tokenizer_files
from edgepeft.base.load import load_model
from edgepeft.base.tokenizer_files import CORPUS, check_same_tokens, lower_cased, lowers_case, model_files
from edgepeft.errors import CaptureError, InputError, MissingExtraError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox", "##s", "lazy", "日", "本", "é"]


def _config(folder: Path, name: str, **more: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **more}))


def _pieces(kind: str, **options: Any) -> bytes:
    """A sentencepiece model of the corpus itself."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\n", " ") for text in CORPUS if text.strip()] * 20),
        model_writer=written, vocab_size=options.pop("size", 420), model_type=kind, hard_vocab_limit=False, minloglevel=2,
        **options,
    )  # fmt: skip
    return written.getvalue()


def _bpe(folder: Path, **options: Any) -> None:
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))


def _words(folder: Path, lower: bool) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz" + ("" if lower else "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    words = [*WORDS, *letters, *(f"##{letter}" for letter in letters), *"0123456789.,'-"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    _config(folder, "BertTokenizer", do_lower_case=lower)


def _t5(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(_pieces("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    _config(folder, "T5Tokenizer", extra_ids=5)


def _llama(folder: Path) -> None:
    content = _pieces(
        "bpe", size=700, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False
    )
    (folder / "tokenizer.model").write_bytes(content)
    _config(folder, "LlamaTokenizer")


def _xlmr(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(_pieces("unigram"))
    _config(folder, "XLMRobertaTokenizer")


def _gpt2(folder: Path) -> None:
    _bpe(folder)
    _config(folder, "GPT2Tokenizer", eos_token="<|endoftext|>", unk_token="<|endoftext|>", bos_token="<|endoftext|>")


def _roberta(folder: Path) -> None:
    _bpe(folder)
    _config(folder, "RobertaTokenizer", additional_special_tokens=["<user>"])
    (folder / "added_tokens.json").write_text(json.dumps({"newword": 330, "<user>": 331}))


KINDS: dict[str, Callable[[Path], None]] = {
    "vocab.txt, uncased": lambda folder: _words(folder, lower=True),
    "vocab.txt, cased": lambda folder: _words(folder, lower=False),
    "vocab.json and merges.txt, GPT-2": _gpt2,
    "vocab.json and merges.txt, RoBERTa": _roberta,
    "spiece.model, T5": _t5,
    "tokenizer.model, Llama": _llama,
    "sentencepiece.bpe.model, XLM-RoBERTa": _xlmr,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    KINDS[kind](tmp_path)
    files = model_files(str(tmp_path), str(tmp_path))
    converted = Tokenizer.from_str(files["tokenizer.json"].decode())
    reference = AutoTokenizer.from_pretrained(tmp_path)
    special = [str(token) for token in reference.get_added_vocab()]
    assert special
    texts = [*CORPUS, "x" * 500, *(f"a {token} b{token}c" for token in special)]
    for text in texts:
        assert converted.encode(text).ids == reference(text)["input_ids"], text
    assert converted.encode(CORPUS[0]).ids != converted.encode(CORPUS[4]).ids


def test_sentencepiece_itself_gives_t5s_tokens(tmp_path: Path) -> None:
    """An independent reference: the library that trained the model."""
    import sentencepiece

    _t5(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "spiece.model").read_bytes())
    converted = Tokenizer.from_str(model_files(str(tmp_path), str(tmp_path))["tokenizer.json"].decode())
    for text in CORPUS:
        assert converted.encode(text).ids == [*reference.encode(text), 1], text


def test_a_bundle_runs_on_text(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    source = models("bert", "feature-extraction")
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    whole = Tokenizer.from_file(str(source / "tokenizer.json"))
    places = {place: token for token, place in whole.get_vocab().items()}
    lines = [places.get(place, f"[unused{place}]") for place in range(max(places) + 1)]
    (folder / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    bundle = pipeline.export(folder, {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    with runtime.open(bundle.path, threads=1) as model:
        assert model.encode("the film was good")["input_ids"].tolist() == [whole.encode("the film was good").ids]


@pytest.mark.parametrize(
    ("name", "file"), [("EsmTokenizer", "vocab.txt"), ("ByT5Tokenizer", None), ("CanineTokenizer", None)]
)
def test_what_has_no_fast_form_is_refused_by_name(name: str, file: str | None, tmp_path: Path) -> None:
    _config(tmp_path, name)
    if file is not None:
        (tmp_path / file).write_text("<cls>\n<pad>\n<eos>\n<unk>\nL\n<mask>")
    says = rf"its tokenizer \({name}\) has no fast form.*Remove {file or 'tokenizer_config.json'} to"
    with pytest.raises(InputError, match=says):
        model_files(str(tmp_path), str(tmp_path))
    assert "tokenizer.json" not in model_files(str(tmp_path), str(tmp_path), texts=False)


def test_damaged_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _t5(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"has no tokenizer\.json, and transformers cannot make one"):
        model_files(str(tmp_path), str(tmp_path))
    monkeypatch.setattr(tokenizer_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install sentencepiece"):
        model_files(str(tmp_path), str(tmp_path))


def test_other_tokens_are_found_out(tmp_path: Path) -> None:
    """A conversion that forgets to lower-case, and one that lost an added token."""
    from transformers import AutoTokenizer

    _words(tmp_path, lower=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    good = model_files(str(tmp_path), str(tmp_path))["tokenizer.json"]
    check_same_tokens(tokenizer, good, "here")
    wrong = json.loads(good)
    wrong["normalizer"]["lowercase"] = False
    with pytest.raises(CaptureError, match="The quick brown fox"):
        check_same_tokens(tokenizer, json.dumps(wrong).encode(), "here")
    tokenizer.add_tokens(["quickfox"])
    with pytest.raises(CaptureError, match="before quickfox"):
        check_same_tokens(tokenizer, good, "here")


def test_lower_case(tmp_path: Path, models: Models) -> None:
    _words(tmp_path, lower=False)
    files = model_files(str(tmp_path), str(tmp_path))
    assert not lowers_case(files)
    lowered = lower_cased(files)
    assert lowers_case(lowered)
    assert lower_cased(lowered) == lowered
    one, two = (Tokenizer.from_str(each["tokenizer.json"].decode()) for each in (files, lowered))
    assert two.encode("The QUICK").ids == two.encode("the quick").ids != one.encode("The QUICK").ids
    assert load_model(models("bert")).files.keys() >= {"tokenizer.json", "tokenizer_config.json"}


def test_pre_processing_of_images_travels_with_the_bundle(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    said = {"do_resize": True, "size": {"height": 20, "width": 20}, "crop_size": 16, "image_mean": [0.5, 0.4, 0.3]}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(said))
    bundle = pipeline.export(tmp_path / "vit", {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    assert json.loads(bundle.read_text("preprocessor_config.json")) == said
