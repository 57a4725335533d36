"""LongRoPE on both sides of its switch, over it, and in pieces. Reference: transformers on the whole sequence, uncached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from causal import save_byte_tokenizer
from conftest import randomize, save_lora
from peft import PeftModel
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from edgepeft import runtime
from edgepeft.base.lengths import lengths_that_matter, rope_switch
from edgepeft.bundle import read_bundle
from edgepeft.errors import CaptureError, InputError
from edgepeft.pipeline import export
from edgepeft.runtime.generation import draft, switched

SWITCH, LONGEST = 40, 160


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("longrope")
    vocabulary = save_byte_tokenizer(folder / "base")
    rng = np.random.default_rng(0)
    config = Phi3Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LONGEST, original_max_position_embeddings=SWITCH, bos_token_id=1,
        eos_token_id=2, pad_token_id=2, sliding_window=None,
        rope_scaling={
            "type": "longrope", "short_factor": [float(x) for x in 1 + 0.1 * rng.random(8)],
            "long_factor": [float(x) for x in np.linspace(1, 30, 8)],
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    randomize(model, 0, scale=0.2)
    model.save_pretrained(folder / "base")
    for seed, name in enumerate(("a", "b"), 1):
        save_lora(
            folder / name,
            folder / "base",
            task="text-generation",
            task_type="CAUSAL_LM",
            target_modules=["qkv_proj"],
            seed=seed,
        )
    export(folder / "base", {name: folder / name for name in ("a", "b")}, folder / "bundle")
    return {name: folder / name for name in ("base", "a", "b", "bundle")}


def reference(folders: dict[str, Path], adapter: str) -> torch.nn.Module:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["base"]), folders[adapter]).eval()


def logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
    return found


def greedy(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    whole = list(ids)
    for _ in range(count):
        whole.append(int(logits(model, whole).argmax()))
    return whole[len(ids) :]


def tokens(length: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(3, 200, length)]


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in pieces of 16 tokens, as real ones in pieces of 512."""
    monkeypatch.setattr(switched, "CHUNK", 16)


def test_what_a_config_says() -> None:
    assert rope_switch({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 7}) == 7
    assert (
        rope_switch(
            {"text_config": {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 9}}}
        )
        == 9
    )
    assert rope_switch({"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 9}}) is None
    assert rope_switch({}) is None
    config = {
        "sliding_window": 512, "original_max_position_embeddings": 4096,
        "rope_parameters": {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 2048}},
    }  # fmt: skip
    assert lengths_that_matter(config) == (512, 513, 2048, 2049, 4096, 4097)
    assert lengths_that_matter(config, 2048) == (512, 513, 2048)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("length", [10, SWITCH - 1, SWITCH, SWITCH + 1, 70, 130])
def test_prompts_in_pieces(length: int, folders: dict[str, Path]) -> None:
    assert read_bundle(folders["bundle"]).manifest.rope_switch == SWITCH
    view, ids = runtime.open(folders["bundle"]).adapter("a"), tokens(length)
    found = view.decoder(1, length + 4).prefill([ids])[0]
    assert np.abs(found - logits(reference(folders, "a"), ids)).max() <= 1e-4


@pytest.mark.usefixtures("pieces")
def test_texts_that_grow_over_the_switch(folders: dict[str, Path]) -> None:
    """Rows of a batch cross it each at its own length, with adapters of their own, and as they do alone."""
    model = runtime.open(folders["bundle"])
    ids = [np.array(tokens(length, seed)) for seed, length in enumerate((SWITCH - 4, 8, SWITCH + 9))]
    names = ["a", "b", "a"]
    expected = [greedy(reference(folders, name), list(each), 12) for name, each in zip(names, ids, strict=True)]
    options = {"max_new_tokens": 12, "temperature": 0.0}
    found = model.generate(ids, adapters=names, **options)  # type: ignore[call-overload]
    for row, wanted in zip(found, expected, strict=True):
        stop = wanted.index(2) + 1 if 2 in wanted else len(wanted)
        assert list(row.tokens) == wanted[:stop]
    alone = [model.adapter(name).generate(each, **options) for name, each in zip(names, ids, strict=True)]  # type: ignore[call-overload]
    assert [row.tokens for row in alone] == [row.tokens for row in found]


@pytest.mark.parametrize("length", [8, SWITCH - 4, SWITCH + 9])
def test_drafts_stay_on_their_side_of_the_switch(
    length: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token before the switch is verified in a run that ends beyond it, which would rotate it by the long frequencies."""
    model = runtime.open(folders["bundle"])
    prompts, names = [np.array(tokens(length)), np.array(tokens(5, 1))], ["a", "b"]
    options = {"max_new_tokens": SWITCH, "temperature": 0.0, "eos": None}
    plain = model.generate(prompts, adapters=names, **options)  # type: ignore[call-overload]
    coming = {tuple(prompt): row.tokens for prompt, row in zip(prompts, plain, strict=True)}

    def propose(self: draft.Drafter) -> draft.Proposal:
        known = [*coming[tuple(self.prompt)][len(self._tokens) - len(self.prompt) :], *[5] * draft.LONGEST]
        known[6] = (known[6] + 1) % 100
        return draft.Proposal(known[: draft.LONGEST], 8)

    monkeypatch.setattr(draft.Drafter, "propose", propose)
    monkeypatch.setattr(draft.RunCosts, "ratios", lambda self: [0.0, *[1.0] * (draft.LONGEST + 1)])
    for prompt, name, wanted in zip(prompts, names, plain, strict=True):
        found = model.adapter(name).generate(prompt, draft="prompt", **options)  # type: ignore[arg-type]
        assert found.tokens == wanted.tokens
        assert len(wanted.tokens) < 5 or found.accepted_tokens > 0
    found_rows = model.generate(prompts, adapters=names, draft="prompt", **options)  # type: ignore[call-overload]
    assert [row.tokens for row in found_rows] == [row.tokens for row in plain]


@pytest.mark.usefixtures("pieces")
def test_a_conversation_goes_on_and_back(folders: dict[str, Path]) -> None:
    """What the cache holds is used as long as it is of the same side, and read anew otherwise."""
    view = runtime.open(folders["bundle"]).adapter("a")
    model, conversation = reference(folders, "a"), view.conversation()
    first, second = tokens(30), [*tokens(30), *tokens(25, 1)]
    for ids, reused in ((first, 0), (second, 30), (first, 29), (second, 30)):
        found = conversation.generate(np.array(ids), max_new_tokens=1, temperature=0)
        assert list(found.tokens) == greedy(model, ids, 1)
        assert found.reused_tokens == min(reused, len(ids) - 1)


def test_a_context_below_the_switch_needs_none(folders: dict[str, Path], tmp_path: Path) -> None:
    export(folders["base"], {"a": folders["a"]}, tmp_path / "bundle", max_length=SWITCH)
    assert read_bundle(tmp_path / "bundle").manifest.rope_switch is None


def test_mobius_names_why_it_is_left_out(folders: dict[str, Path]) -> None:
    from edgepeft.base.load import load_model
    from edgepeft.base.routes.mobius import build

    with pytest.raises(CaptureError, match=f"another for sequences of more than {SWITCH} tokens"):
        build(load_model(folders["base"], task="text-generation"))


def test_other_runtimes_end_at_the_switch(folders: dict[str, Path]) -> None:
    from edgepeft.bench import Job, Prompts
    from edgepeft.devices.executors.cpp_protocol import write_job

    job = Job(bundle=str(folders["bundle"]), variant="fp32", threads=1,
              prompts=(Prompts(adapter="a", texts=("good day " * 9,), max_new_tokens=20, chat=False),))  # fmt: skip
    bundle = read_bundle(folders["bundle"])
    with pytest.raises(InputError, match=f"beyond {SWITCH} tokens this model's rotary frequencies are others"):
        write_job(job, bundle, {name: name for name in bundle.manifest.files})
