"""Embeddings against sentence-transformers' own ``encode``, over tiny random models.

Tolerance 1e-5 everywhere: both sides compute in float32, and numbers are of the order of 1 (a graph's sums over a few
dozen numbers in another order cost about 1e-7 each).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bases, Models, randomize, save_lora, save_tokenizer
from sentence_folders import TEXTS, library, random_module, save_sentence, worst

from edgepeft import pipeline, runtime
from edgepeft.adapters.checkpoint import read_checkpoint
from edgepeft.base.load import load_model
from edgepeft.bundle import read_bundle
from edgepeft.bundle.manifest import Manifest, dump_manifest
from edgepeft.embedding.folder import read_sentence_folder
from edgepeft.errors import AdapterError, InputError, ManifestError

TOLERANCE = 1e-5
HIDDEN = 32


def _modules(spec: str) -> list[Any]:
    """``"cls+mean, dense 16 tanh, normalize"`` as the library's modules."""
    import torch
    from sentence_transformers.sentence_transformer import modules as st

    made: list[Any] = []
    size = HIDDEN
    for part in spec.split(", "):
        name, *rest = part.split()
        if name == "dense":
            activation = getattr(torch.nn, rest[1])()
            options = {"bias": "nobias" not in rest, "use_residual": "residual" in rest}
            dense = st.Dense(size, int(rest[0]), activation_function=activation, **options)
            made.append(random_module(dense))
            size = int(rest[0])
        elif name == "normalize":
            made.append(st.Normalize())
        elif name == "norm":
            made.append(random_module(st.LayerNorm(size)))
        elif name == "dropout":
            made.append(st.Dropout(0.5))
        else:
            modes = tuple(name.split("+"))
            made.append(st.Pooling(size, modes if len(modes) > 1 else modes[0], include_prompt="noprompt" not in rest))
            size *= len(modes)
    return made


CONFIGURATIONS = (
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
    "cls, normalize",
    "mean, normalize",
    "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken, normalize",
    "mean, dense 16 Tanh",
    "cls, dense 24 Identity nobias, normalize",
    "max+mean, dense 64 GELU residual, norm, dense 8 ReLU, normalize",
    "mean noprompt, normalize",
    "weightedmean+cls noprompt",
    "lasttoken, dropout, dense 32 SiLU residual, dropout",
)


def _write(base: Any, folder: Path, out: Path, adapters: tuple[Any, ...] = (), **embeddings: Any) -> Path:
    """A bundle of a captured base that embeds as ``folder`` says."""
    modules = read_sentence_folder(folder)
    assert modules is not None
    limit = min(base.max_length, modules.max_length or base.max_length)
    said = dataclasses.replace(base, embedding=modules, max_length=limit)
    slotted = pipeline.add_slots(said, list(adapters))
    return pipeline.write_bundle(out, said, slotted, adapters, **embeddings).path


@pytest.fixture(scope="module")
def encoder(models: Models) -> Path:
    return models("bert", "feature-extraction")


@pytest.fixture(scope="module")
def base(bases: Bases) -> Any:
    return bases("bert", "feature-extraction")


@pytest.mark.parametrize("spec", CONFIGURATIONS)
def test_embeddings_equal_the_librarys(spec: str, encoder: Path, base: Any, tmp_path: Path) -> None:
    prompts = {"query": "the end : ", "plain": ""}
    folder = save_sentence(
        tmp_path / "st", encoder, _modules(spec), limit=20, prompts=prompts, default_prompt_name="query"
    )
    bundle = _write(base, folder, tmp_path / "bundle")
    with runtime.open(bundle, threads=1) as model:
        assert worst(model.embed(TEXTS), library(folder, TEXTS)) < TOLERANCE
        assert worst(model.embed(TEXTS, batch_size=2), library(folder, TEXTS)) < TOLERANCE
        plain = model.embed(TEXTS, prompt_name="plain")
        assert worst(plain, library(folder, TEXTS, prompt_name="plain")) < TOLERANCE
        free = model.embed(TEXTS, prompt="a very good book .")
        assert worst(free, library(folder, TEXTS, prompt="a very good book .")) < TOLERANCE
        assert not np.allclose(model.embed(TEXTS), plain, atol=1e-3), "the prompt changes nothing"
        # One text is the same as a row of many, and run() gives what embed() gives.
        assert worst(model.embed(TEXTS[2]), library(folder, TEXTS)[2]) < TOLERANCE
        assert np.allclose(model.run(TEXTS)[1]["embedding"], model.embed(TEXTS)[1], atol=1e-7)
        assert model.truncated(TEXTS) == [3]
        assert model.truncated(["good " * 17], prompt="") == []  # 17 words, [CLS] and [SEP]: 19 of 20
        assert model.truncated(["good " * 17]) == [0]  # with the prompt


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spec", ["mean", "mean, normalize"])
def test_cuts_are_the_librarys(spec: str, normalize: bool, encoder: Path, base: Any, tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "st", encoder, _modules(spec))
    with runtime.open(_write(base, folder, tmp_path / "bundle"), threads=1) as model:
        found = model.embed(TEXTS, dim=8, normalize=normalize)
        expected = library(folder, TEXTS, truncate_dim=8, normalize_embeddings=normalize)
        assert worst(found, expected) < TOLERANCE
        if normalize:
            assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        with pytest.raises(InputError, match="from 1 to 32"):
            model.embed(TEXTS, dim=33)
        with pytest.raises(InputError, match="no prompt 'querry'"):
            model.embed(TEXTS, prompt_name="querry")
        with pytest.raises(InputError, match="pair of texts"):
            model.embed([("a", "b")], prompt="x ")
        with pytest.raises(InputError, match="no texts"):
            model.embed([])


def test_adapters_bring_their_own_pooling_prompts_and_limits(encoder: Path, base: Any, tmp_path: Path) -> None:
    """Folders that ``SentenceTransformer.save`` wrote with a PEFT adapter in them, one base, rows of a batch mixed."""
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    def adapter(name: str, spec: str, limit: int, seed: int, **options: Any) -> Path:
        first = Transformer(str(encoder))
        first.max_seq_length = limit
        whole = SentenceTransformer(modules=[first, *_modules(spec)], device="cpu", **options)
        whole.add_adapter(
            LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
        )
        lora = [module for module in whole.modules() if hasattr(module, "lora_B")]
        for place, module in enumerate(lora):
            randomize(module.lora_A, seed + place)
            randomize(module.lora_B, seed + 50 + place)
        whole.save(str(tmp_path / name), create_model_card=False)
        path = tmp_path / name / "sentence_bert_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": limit}))
        config = tmp_path / name / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(encoder)}))
        return tmp_path / name

    one = adapter("one", "cls, normalize", 12, 1, prompts={"query": "good : "}, default_prompt_name="query")
    two = adapter("two", "max, dense 32 Tanh", 24, 2)
    three = save_lora(tmp_path / "three", encoder, task="feature-extraction", task_type="FEATURE_EXTRACTION")
    said: list[str] = []
    exported = pipeline.export(
        encoder, {"one": one, "two": two, "three": three}, tmp_path / "bundle", announce=said.append
    )
    assert any("adapter one embeds texts by its own modules: cls, normalize; prompt 'query'" in line for line in said)
    bundle = exported.bundles[0]
    manifest = bundle.manifest
    assert manifest.adapters["three"].embedding is None
    assert manifest.adapters["one"].embedding is not None
    assert manifest.adapters["one"].embedding.max_length == 12
    bundle.verify()
    expected = {"one": library(one, TEXTS), "two": library(two, TEXTS)}
    with runtime.open(bundle.path, threads=1) as model:
        for name, reference in expected.items():
            assert worst(model.adapter(name).embed(TEXTS), reference) < TOLERANCE
        rows = ["one", "two", "one", "two", "one"]
        mixed = model.embed(TEXTS, adapters=rows)
        assert worst(mixed, np.stack([expected[name][row] for row, name in enumerate(rows)])) < TOLERANCE
        assert model.adapter("one").truncated(TEXTS) == [2, 3]  # 10 words, 2 of the prompt and 2 special ones: 14 of 12
        assert model.adapter("one").longest_text == 12
        # three has no way of its own: the base's, which is the mean
        three_alone = model.adapter("three").embed(TEXTS[:3])
        assert not np.allclose(three_alone, model.base.embed(TEXTS[:3]), atol=1e-3)
        mixed = model.embed(TEXTS[:2], adapters=["three", None])
        assert worst(mixed, np.stack([three_alone[0], model.base.embed(TEXTS[1])])) < TOLERANCE
        # a blend embeds as one of its adapters does, which must be said where they differ
        with pytest.raises(InputError, match="embed texts differently"):
            model.adapter({"one": 0.5, "two": 0.5})
        assert worst(model.adapter({"one": 1.0, "two": 0.0}, head="one").embed(TEXTS), expected["one"]) < TOLERANCE

    # Added later, from its folder and from the file that a bundle holds; blended into the bundle; removed again.
    alone = tmp_path / "alone"
    pipeline.export(encoder, {"three": three}, alone, slots="all-linear")
    pipeline.add(alone, "one", one)
    pipeline.add(alone, "two", two)
    second = tmp_path / "second"
    shutil.copytree(alone, second)
    pipeline.remove(second, "two")
    assert not (second / "embedding/adapters/two.onnx").exists()
    pipeline.add(second, "again", alone / "adapters" / "two.onnx")
    pipeline.blend(second, {"one": 1.0, "again": 0.0}, "mix", head="one")
    read_bundle(second).verify()
    with runtime.open(second, threads=1) as model:
        assert worst(model.adapter("one").embed(TEXTS), expected["one"]) < TOLERANCE
        assert worst(model.adapter("again").embed(TEXTS), expected["two"]) < TOLERANCE
        assert worst(model.adapter("mix").embed(TEXTS), expected["one"]) < TOLERANCE
    pipeline.add(second, "one", three, replace=True)
    assert not (second / "embedding/adapters/one.onnx").exists()
    # A merged bundle embeds as its one adapter does.
    merged = pipeline.export(encoder, {"one": one}, tmp_path / "merged", mode="merge").bundles[0]
    with runtime.open(merged.path, threads=1) as model:
        assert worst(model.embed(TEXTS), expected["one"]) < TOLERANCE


def test_one_bundle_embeds_and_classifies(encoder: Path, tmp_path: Path) -> None:
    """Adapters of two tasks over a sentence-transformers folder: one for search, one for intents."""
    folder = save_sentence(tmp_path / "st", encoder, _modules("cls, normalize"), limit=20)
    search = save_lora(
        tmp_path / "search", folder, task="feature-extraction", task_type="FEATURE_EXTRACTION", scale=0.3
    )
    intent = save_lora(tmp_path / "intent", folder, task_type="SEQ_CLS", num_labels=3, modules_to_save=["classifier"])
    bundle = pipeline.export(folder, {"search": search, "intent": intent}, tmp_path / "bundle").bundles[0]
    with runtime.open(bundle.path, threads=1) as model:
        assert worst(model.base.embed(TEXTS), library(folder, TEXTS)) < TOLERANCE
        found = model.adapter("search").embed(TEXTS)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert not np.allclose(found, model.base.embed(TEXTS), atol=1e-3)
        mixed = model.run(TEXTS[:3], adapters=["search", "intent", None])
        assert np.allclose(mixed[0]["embedding"], found[0], atol=1e-6)
        assert "label" in mixed[1]
        assert np.allclose(mixed[2]["embedding"], model.base.embed(TEXTS[2]), atol=1e-6)
        with pytest.raises(InputError, match="is for text-classification; it does not embed"):
            model.adapter("intent").embed(TEXTS)
        with pytest.raises(InputError, match="these are for embeddings"):
            model.adapter("intent").run(TEXTS, dim=4)


def test_a_view_keeps_its_embedding_when_the_bundle_is_read_again(encoder: Path, tmp_path: Path) -> None:
    base = save_sentence(tmp_path / "st", encoder, _modules("mean"))
    plain = save_lora(tmp_path / "plain", encoder, task="feature-extraction", task_type="FEATURE_EXTRACTION")
    other = save_sentence(tmp_path / "other", encoder, _modules("max, normalize"))
    for name in ("config.json", "model.safetensors"):
        (other / name).unlink()
    save_lora(other, encoder, task="feature-extraction", task_type="FEATURE_EXTRACTION", seed=7)
    bundle = pipeline.export(base, {"a": plain}, tmp_path / "bundle", slots="all-linear", force=True).bundles[0].path
    with runtime.open(bundle, threads=1) as model:
        view = model.adapter("a")
        before = view.embed(TEXTS)
        pipeline.add(bundle, "a", other, replace=True, force=True)
        assert model.refresh().replaced == ("a",)
        assert np.array_equal(view.embed(TEXTS), before)
        now = model.adapter("a")
        assert worst(now.embed(TEXTS), library(other, TEXTS)) < TOLERANCE
        pipeline.remove(bundle, "a")
        model.refresh()
        assert worst(now.embed(TEXTS), library(other, TEXTS)) < TOLERANCE


def test_old_layouts_and_lower_case(encoder: Path, tmp_path: Path) -> None:
    """``0_Transformer`` and the settings of old versions; a tokenizer that keeps case and a folder that asks for lower case."""
    folder = save_sentence(tmp_path / "st", encoder, _modules("cls, dense 16 Tanh"), limit=16)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "sentence_bert_config.json",
    ):
        (folder / name).rename(inner / name)
    (inner / "tokenizer.json").write_text(json.dumps(tokenizer))
    (inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    listed = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    bundle = pipeline.export(folder, {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    assert bundle.manifest.task == "feature-extraction"
    assert bundle.manifest.max_length == 16
    with runtime.open(bundle.path, threads=1) as model:
        found = model.embed(TEXTS)
        assert worst(found, library(folder, TEXTS)) < TOLERANCE
        assert worst(model.embed("A BOOK"), model.embed("a book")) == 0


def test_a_decoder_embeds_by_its_last_token(tmp_path: Path) -> None:
    """As Qwen3-Embedding: a decoder without its head, the last token, prompts."""
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXTS[2].split(), "film", "good", *"abcdefghx"]
    vocabulary = list(dict.fromkeys(vocabulary))
    config = transformers.Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen3Model(config)
    randomize(model, 3)
    model.save_pretrained(tmp_path / "qwen")
    save_tokenizer(tmp_path / "qwen", vocabulary)
    folder = save_sentence(
        tmp_path / "st", tmp_path / "qwen", _modules("lasttoken, normalize"), prompts={"query": "the plot "}
    )
    bundle = pipeline.export(folder, {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    with runtime.open(bundle.path, threads=1) as opened:
        assert worst(opened.embed(TEXTS), library(folder, TEXTS)) < TOLERANCE
        query = opened.embed(TEXTS, prompt_name="query", dim=16, normalize=True)
        expected = library(folder, TEXTS, prompt_name="query", truncate_dim=16, normalize_embeddings=True)
        assert worst(query, expected) < TOLERANCE


@pytest.mark.parametrize("whole", [False, True])
def test_the_encoder_of_t5_embeds(whole: bool, tmp_path: Path) -> None:
    """A folder of T5EncoderModel, and a whole T5 that sentence-transformers takes the encoder of."""
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "very", "good", *"abcdefghx"]
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = (transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel)(config)
    randomize(model, 4)
    model.save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5", vocabulary)
    folder = save_sentence(tmp_path / "st", tmp_path / "t5", _modules("mean, dense 16 Identity nobias, normalize"))
    if whole:  # the library saves the encoder alone
        for file in ("config.json", "model.safetensors"):
            shutil.copy(tmp_path / "t5" / file, folder / file)
    bundle = pipeline.export(folder, {}, tmp_path / "bundle", slots="all-linear").bundles[0]
    assert bundle.manifest.base.architecture == "T5EncoderModel"
    with runtime.open(bundle.path, threads=1) as opened:
        assert worst(opened.embed(TEXTS), library(folder, TEXTS)) < TOLERANCE
    if not whole:  # without sentence-transformers' files it is taken too, by its mean
        assert load_model(tmp_path / "t5").task == "feature-extraction"


def test_older_bundles_open_and_give_the_mean(encoder: Path, base: Any, tmp_path: Path) -> None:
    bundle = _write(base, save_sentence(tmp_path / "st", encoder, _modules("mean")), tmp_path / "bundle")
    with runtime.open(bundle, threads=1) as model:
        expected = model.embed(TEXTS)
    raw = json.loads((bundle / "edgepeft.json").read_text())
    del raw["embedding"]
    del raw["files"]["embedding/model.onnx"]
    shutil.rmtree(bundle / "embedding")
    (bundle / "edgepeft.json").write_text(json.dumps(raw))
    with runtime.open(bundle, threads=1) as model:
        assert model.manifest.embedding is None
        assert worst(model.embed(TEXTS), expected) < TOLERANCE


def test_manifest_and_graph_must_agree(encoder: Path, base: Any, tmp_path: Path) -> None:
    bundle = _write(base, save_sentence(tmp_path / "st", encoder, _modules("mean")), tmp_path / "bundle")
    manifest = read_bundle(bundle).manifest
    assert manifest.embedding is not None

    def written(**changes: Any) -> None:
        changed = manifest.embedding.model_copy(update=changes)  # type: ignore[union-attr]
        (bundle / "edgepeft.json").write_text(dump_manifest(manifest.model_copy(update={"embedding": changed})))

    written(graph="embedding/other.onnx")
    with pytest.raises(ManifestError, match="not listed under files"):
        read_bundle(bundle)
    written(default_prompt="answer")
    with pytest.raises(ManifestError, match="not one of the prompts"):
        read_bundle(bundle)
    written(dimension=31)
    with runtime.open(bundle, threads=1) as model, pytest.raises(Exception, match="31 numbers"):
        model.embed(TEXTS)
    written(include_prompt=False)
    with runtime.open(bundle, threads=1) as model, pytest.raises(Exception, match="prompt_length"):
        model.embed(TEXTS)
    assert isinstance(manifest, Manifest)


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("modules.json", lambda m: [m[0]], "lists no Pooling"),
        ("modules.json", lambda m: m[1:], "first module is"),
        ("modules.json", lambda m: {}, "must hold a list of modules"),
        ("modules.json", lambda m: [{**m[0], "path": "../x"}], "leaves the folder"),
        (
            "modules.json",
            lambda m: [*m, {**m[1], "type": "sentence_transformers.models.LSTM"}],
            "LSTM is not supported",
        ),
        ("modules.json", lambda m: [*m, {**m[1], "type": "custom_st.Head"}], "custom_st.Head is not supported"),
        ("1_Pooling/config.json", lambda c: {**c, "pooling_mode": "median"}, "median"),
        (
            "2_Dense/config.json",
            lambda c: {**c, "activation_function": "torch.nn.modules.activation.Hardtanh"},
            "Hardtanh",
        ),
        ("2_Dense/config.json", lambda c: {**c, "module_input_name": "token_embeddings"}, "token_embeddings"),
        ("config_sentence_transformers.json", lambda c: {**c, "model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", lambda c: {**c, "default_prompt_name": "q"}, "not one of its prompts"),
        ("config_sentence_transformers.json", lambda c: {**c, "prompts": ["q"]}, "texts by name"),
        ("sentence_bert_config.json", lambda c: {**c, "max_seq_length": "many"}, "whole number"),
        ("sentence_bert_config.json", lambda c: {**c, "transformer_task": "fill-mask"}, "fill-mask"),
        (
            "sentence_bert_config.json",
            lambda c: {**c, "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "pooler_output",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    file: str, change: Callable[[Any], Any], says: str, encoder: Path, tmp_path: Path
) -> None:
    folder = save_sentence(tmp_path / "st", encoder, _modules("mean, dense 16 Tanh"))
    _edit(folder / file, change)
    with pytest.raises(InputError, match=says):
        read_sentence_folder(folder)


def test_modules_that_do_not_fit_and_weights_that_lack_are_refused(encoder: Path, base: Any, tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "st", encoder, _modules("mean, dense 16 Tanh"))
    _edit(folder / "1_Pooling/config.json", lambda c: {**c, "pooling_mode": ["cls", "mean"]})
    with pytest.raises(InputError, match="takes 32 numbers; what is before it gives 64"):
        _write(base, folder, tmp_path / "bundle")
    weights = folder / "2_Dense/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        read_sentence_folder(folder)
    weights.unlink()
    with pytest.raises(InputError, match="holds no weights"):
        read_sentence_folder(folder)


def test_an_activation_that_is_not_torchs_is_tanh_and_said(encoder: Path, tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "st", encoder, _modules("mean, dense 16 ReLU"))
    _edit(folder / "2_Dense/config.json", lambda c: {**c, "activation_function": "my.code.Swish"})
    found = read_sentence_folder(folder)
    assert found is not None
    assert found.describe() == ("mean", "dense 32 -> 16 tanh")
    assert "Tanh is used" in found.notes[0]


def test_weights_of_old_versions_are_read_without_code(encoder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = save_sentence(tmp_path / "st", encoder, _modules("mean, dense 16 Tanh"))
    new = read_sentence_folder(folder)
    torch.save(load_file(folder / "2_Dense/model.safetensors"), folder / "2_Dense/pytorch_model.bin")
    (folder / "2_Dense/model.safetensors").unlink()
    old = read_sentence_folder(folder)
    assert new is not None
    assert old is not None
    assert np.array_equal(new.modules[0].weight, old.modules[0].weight)  # type: ignore[union-attr]


def test_a_contract_without_its_graph_is_refused(encoder: Path, tmp_path: Path) -> None:
    from edgepeft.adapters.files import contract_of, read_adapter_onnx

    three = save_lora(tmp_path / "three", encoder, task="feature-extraction", task_type="FEATURE_EXTRACTION")
    pipeline.export(encoder, {"three": three}, tmp_path / "bundle")
    path = tmp_path / "bundle/adapters/three.onnx"
    found = read_adapter_onnx(path)
    found.metadata["embedding"] = {"dimension": 4}
    with pytest.raises(AdapterError, match="holds no graph"):
        contract_of(found, path)
    assert read_checkpoint(three).path == three
