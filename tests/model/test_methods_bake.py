"""Every PEFT method baked, over a BERT classifier and a Llama of one layer: the graph computes what PEFT computes.

One checkpoint of each type that PEFT can build there, its trained numbers random; cases, tolerance and marks are those of
``test_methods.py``. Over the Llama prompts and the tokens after them are compared, through the cache. Tracing takes
seconds, so the default suite has those that are traced in ways of their own; ``-m ""`` runs them all.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_methods as encoder
import test_methods_llama as decoder
from figures import STEPS, Key, recorded
from test_methods import CASES, TOLERANCE, Case, Note, _case, pytestmark, within  # noqa: F401 - the mark is this module's

from edgepeft.adapters.methods.registry import METHODS
from edgepeft.base.bake.bake import bake
from edgepeft.base.parity_causal import causal_batches, reference_causal
from edgepeft.base.ragged import ragged_batches
from edgepeft.errors import AdapterError, UnsupportedAdapterError
from edgepeft.graph.run import run_graph
from edgepeft.pipeline import export

VIRTUAL = {name for name, method in METHODS.items() if method.virtual}
_WHOLE = {"target_modules": None, "modules_to_save": None}  # what names no layers


def _only(peft_type: str, **options: Any) -> Case:
    case = _case(peft_type, "bake", **{**_WHOLE, **options})
    return replace(case, options={key: value for key, value in case.options.items() if value is not None})


#: Methods that are neither swapped nor merged over one of the bases; LILY mixes by what is in a call.
BAKED = (
    _case("LILY", "bake", r=4, scale=0.3),
    _only("PROMPT_TUNING", num_virtual_tokens=3, scale=1.0),
    _only("P_TUNING", num_virtual_tokens=3, encoder_hidden_size=16, scale=1.0),
    _only("PREFIX_TUNING", num_virtual_tokens=3, scale=1.0),
    _only("CARTRIDGE", num_virtual_tokens=4, num_frozen_tokens=1, scale=1.0),
    _only("MULTITASK_PROMPT_TUNING", num_virtual_tokens=3, num_tasks=3, num_ranks=2, scale=1.0, task=1),
)
#: Those that PEFT builds over language models only.
CAUSAL = (
    _only("CPT", cpt_token_ids=[4, 9, 5, 8], cpt_mask=[1] * 4, cpt_tokens_type_mask=[1, 2, 2, 3], scale=0.5),
    _only("ADAPTION_PROMPT", adapter_len=3, adapter_layers=1, scale=1.0),
    _only("SHADOW", scale=0.2),
)
#: The first case of each type; PSOFT's first has a higher rank than this Llama's values are wide.
_FIRST = tuple({case.peft_type: case for case in reversed(CASES) if str(case) != "PSOFT"}.values())[::-1]
#: Each is traced in a way of its own; others of that kind are in ``test_bake.py`` and ``test_bake_causal.py``.
QUICK = {
    "bert": {"BOFT", "C3A", "FROD", "HRA", "PROMPT_TUNING", "PSOFT", "SHIRA"},
    "llama": {"C3A", "LORA", "MULTITASK_PROMPT_TUNING", "POLY"},
}


def _cases(base: str, cases: tuple[Case, ...]) -> list[Any]:
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(case, id=str(case), marks=marks[case.peft_type in QUICK[base]]) for case in cases]


def expected_figures() -> set[Key]:
    """What ``docs/methods.json`` holds a figure of."""
    found: set[Key] = set()
    for case in CASES:
        # Llama's linear layers have no biases, which BEFT would replace.
        bases = ("bert",) if case.peft_type == "BEFT" else ("bert", "llama")
        found |= {(case.peft_type, base, way) for base in bases for way in ("merge", case.ships)}
    found |= {(case.peft_type, base, "bake") for case in (*_FIRST, *BAKED) for base in ("bert", "llama")}
    found |= {(case.peft_type, "llama", "bake") for case in CAUSAL}
    return found | {(name, "llama", "swap") for name in VIRTUAL}


@pytest.fixture(scope="module", autouse=True)
def _without_collection() -> Iterator[None]:
    """Tracing makes millions of objects; looking for cycles among them is a fifth of its time."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def _collected_after() -> Iterator[None]:
    yield
    gc.collect()


def _randomized(model: Any, path: Path) -> Path:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=40, num_labels=3,
        )  # fmt: skip
        return _randomized(BertForSequenceClassification(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT's ADAPTION_PROMPT takes heads to be as wide as hidden size over heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return _randomized(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("case", _cases("bert", (*_FIRST, *BAKED)))
def test_baked_over_bert(case: Case, bert: Path, tmp_path: Path, note: Note) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    if case.needs:
        pytest.importorskip(case.needs, reason=f"PEFT's {case.peft_type} cannot be built without {case.needs}")
    source = encoder.write_checkpoint(bert, tmp_path / "a", case)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    # As many virtual tokens stand before the sequence as the positions leave.
    batches = ragged_batches(vocab=60, pad_id=0, input_names=names, max_length=30)
    expected = encoder.peft_logits(bert, source, batches)
    model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    with torch.no_grad():
        plain = [model(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits.numpy() for batch in batches]
    assert encoder.difference(plain, expected) > 20 * TOLERANCE, "the adapter must change the output"
    baked = bake(bert, source, task="text-classification")
    found = [result["logits"] for result in run_graph(baked.graph, batches)]
    note(case.peft_type, "bert", "bake", within(encoder.difference(found, expected)))


@pytest.mark.parametrize("case", _cases("llama", (*_FIRST, *BAKED, *CAUSAL)))
def test_baked_over_llama(case: Case, llama: Path, tmp_path: Path, note: Note) -> None:
    from transformers import AutoModelForCausalLM

    if case.needs:
        pytest.importorskip(case.needs, reason=f"PEFT's {case.peft_type} cannot be built without {case.needs}")
    case = decoder._of_llama(case)
    source = decoder.write_checkpoint(llama, tmp_path / "a", case)
    module = decoder.peft_model(llama, source)
    batches = causal_batches(vocab=60, pad_id=0, max_length=40)
    expected = [reference_causal(module, batch) for batch in batches]
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    plain = [reference_causal(model, batch) for batch in batches]
    for part in (0, 1):  # prompts, and what follows them
        changed = encoder.difference([each[part] for each in plain], [each[part] for each in expected])
        assert changed > 20 * TOLERANCE, "the adapter must change the output"
    baked = bake(llama, source, task="text-generation")
    note(
        case.peft_type,
        "llama",
        "bake",
        within(decoder.difference(decoder.run(baked.graph, batches), expected, batches)),
    )


# ── what cannot be baked, and the record ──
def test_what_peft_cannot_do_is_refused_with_its_reason(bert: Path, llama: Path, tmp_path: Path) -> None:
    lora = decoder.write_checkpoint(
        llama, tmp_path / "0", _case("LORA", target_modules=["q_proj"], modules_to_save=None)
    )
    config = (lora / "adapter_config.json").read_text().replace('"LORA"', '"XLORA"')
    (lora / "adapter_config.json").write_text(config)
    for mode in ("swap", "merge", "bake"):
        with pytest.raises(UnsupportedAdapterError, match=r"XLORA \(X-LoRA\) .*saves no whole checkpoint"):
            export(llama, {"a": lora}, tmp_path / "b", mode=mode, task="text-generation")  # type: ignore[arg-type]
    cpt = decoder.write_checkpoint(llama, tmp_path / "cpt", CAUSAL[0])
    config = (cpt / "adapter_config.json").read_text().replace('"CAUSAL_LM"', '"SEQ_CLS"')
    (cpt / "adapter_config.json").write_text(config)
    said = r"CPT \(CPT\) can be neither swapped, merged nor baked.*language models only"
    with pytest.raises(UnsupportedAdapterError, match=said):
        export(bert, {"a": cpt}, tmp_path / "b", mode="bake", task="text-classification")
    shadow = decoder.write_checkpoint(llama, tmp_path / "shadow", CAUSAL[2])
    with pytest.raises(AdapterError, match=r"PEFT cannot load .* over "):
        bake(bert, shadow, task="text-classification")


def test_xlora_as_peft_saves_it_lacks_what_was_trained(llama: Path, tmp_path: Path) -> None:
    """Why it is refused. Where this fails, PEFT saves X-LoRA whole and the registry can think again."""
    import torch
    from peft import XLoraConfig, get_peft_model
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    for name in ("0", "1"):
        decoder.write_checkpoint(llama, tmp_path / name, _case("LORA", target_modules=["q_proj"], modules_to_save=None))
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.config.use_cache = False
    experts = {name: str(tmp_path / name) for name in ("0", "1")}
    with torch.random.fork_rng():
        wrapped = get_peft_model(
            model, XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, xlora_depth=1, adapters=experts)
        )
        wrapped.save_pretrained(tmp_path / "x")
    assert any("internal_xlora_classifier.layers.0" in name for name, _ in wrapped.named_parameters())
    assert not load_file(tmp_path / "x" / "adapter_model.safetensors")


def test_the_record_is_of_these_cases() -> None:
    """Missing: record them. Too many: record again, which drops them."""
    known = recorded()
    assert set(known) == expected_figures(), "pytest tests/model --record-methods -m '' (see tests/figures.py)"
    assert {figure for figure, _ in known.values()} <= set(STEPS)
    baked = {name for name, _, way in known if way == "bake"}
    assert baked == {name for name, method in METHODS.items() if method.mode != "refuse"} | VIRTUAL
