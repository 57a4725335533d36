"""Every PEFT method on a tiny Llama: prompts and the tokens after them, through the cache, swapped and merged.

The cases and the tolerance are those of ``test_methods.py``; modules go by Llama's names. Its q, k and v are packed in the
captured graph, its key and value heads are half as many as its query heads.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_methods import (  # noqa: F401 - the mark is applied to this module too
    CASES,
    TOLERANCE,
    Case,
    Note,
    pytestmark,
    save_moved,
    within,
)

from edgepeft.adapters.fill import fill_slots
from edgepeft.adapters.read import read_adapter
from edgepeft.base.base import Base
from edgepeft.base.capture import capture
from edgepeft.base.parity_causal import CausalBatch, causal_batches, causal_difference, reference_causal, run_causal
from edgepeft.errors import UnsupportedAdapterError
from edgepeft.graph.edit_base import add_slots, merge
from edgepeft.graph.run import open_graph

Logits = list[tuple[np.ndarray, np.ndarray]]

NAMES = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output.dense": "down_proj", "intermediate.dense": "up_proj",
    "word_embeddings": "embed_tokens", "LayerNorm": "input_layernorm", "query.weight": "q_proj.weight",
}  # fmt: skip


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if isinstance(value, dict):
        return {_renamed(key): _renamed(each) for key, each in value.items()}
    return NAMES.get(value, value) if isinstance(value, str) else value


def _of_llama(case: Case) -> Case:
    options = {key: _renamed(value) for key, value in case.options.items() if key != "modules_to_save"}
    # At 0.1 RandLoRA's sum of bases outgrows the weights: PEFT in float32 is then 1e-4 from itself in float64.
    return replace(case, options=options, scale=0.03 if case.peft_type == "RANDLORA" else case.scale)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            intermediate_size=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(llama: Path) -> Base:
    return capture(llama, task="text-generation")


@pytest.fixture(scope="module")
def batches(base: Base) -> list[CausalBatch]:
    return causal_batches(vocab=60, pad_id=0, max_length=base.max_length)


def run(graph: Any, batches: list[CausalBatch], feeds: dict[str, np.ndarray] | None = None) -> Logits:
    shapes = {
        value.name or "": [d if isinstance(d, int) else str(d.value) for d in value.shape or ()]
        for value in graph.graph.inputs
    }
    with open_graph(graph) as step:
        return [run_causal(lambda inputs: step({**inputs, **(feeds or {})}), shapes, batch) for batch in batches]


def difference(found: Logits, expected: Logits, batches: list[CausalBatch]) -> float:
    return max(causal_difference(f, e, batch.mask) for f, e, batch in zip(found, expected, batches, strict=True))


@pytest.fixture(scope="module")
def plain(base: Base, batches: list[CausalBatch]) -> Logits:
    return run(base.graph, batches)


def write_checkpoint(folder: Path, out: Path, case: Case) -> Path:
    """:func:`save_moved` of a causal language model."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_moved(AutoModelForCausalLM, folder, out, case, "CAUSAL_LM")


def peft_model(folder: Path, checkpoint: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, _, task = str(checkpoint).partition("#task=")
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), path).eval()

    def give_task(module: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, {**options, "task_ids": torch.full((len(options["input_ids"]),), int(task))}

    if task:
        wrapped.register_forward_pre_hook(give_task, with_kwargs=True)
    return wrapped


@pytest.mark.parametrize("case", [_of_llama(case) for case in CASES], ids=str)
def test_method(
    case: Case, llama: Path, base: Base, batches: list[CausalBatch], plain: Logits, tmp_path: Path, note: Note
) -> None:
    if case.needs:
        pytest.importorskip(case.needs, reason=f"PEFT's {case.peft_type} cannot be built without {case.needs}")
    checkpoint = write_checkpoint(llama, tmp_path / "adapter", case)
    module = peft_model(llama, checkpoint)
    expected = [reference_causal(module, batch) for batch in batches]
    assert difference(plain, expected, batches) > 20 * TOLERANCE, "the adapter must change the output"

    def read(mode: Any) -> Any:
        return read_adapter(checkpoint, name="a", weights=base.weight, module=lambda: base.reference, mode=mode)

    if case.peft_type == "BEFT":  # Llama's linear layers have no bias to replace
        with pytest.raises(UnsupportedAdapterError, match="adds a bias"):
            read("merge")
        return
    adapter = read("swap")
    assert adapter.exactness.residual <= 1e-4
    if case.ships == "swap":
        slotted = add_slots(base, [adapter])
        feeds = fill_slots(adapter, slotted.table).tensors
        note(case.peft_type, "llama", "swap", within(difference(run(slotted.graph, batches, feeds), expected, batches)))
    else:
        with pytest.raises(UnsupportedAdapterError, match="can only be merged"):
            add_slots(base, [adapter])
    merged = run(merge(base, read("merge")).graph, batches)
    note(case.peft_type, "llama", "merge", within(difference(merged, expected, batches)))
