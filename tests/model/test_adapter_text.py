"""What an adapter's folder says about text: template, special tokens, added tokens, defaults. Reference: transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import CHAT, build_causal
from conftest import save_lora
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.errors import AdapterError, AdapterMismatchError, CorruptBundleError, InputError
from edgepeft.pipeline import add, blend, export, remove
from edgepeft.runtime.generation import Options

ALPACA = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}"
    "{% if add_generation_prompt %}### answer:\n{% if enable_thinking is false %}(no thoughts){% endif %}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
MESSAGES = [{"role": "user", "content": "good day"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says nothing about text."""
    return save_lora(
        tmp_path_factory.mktemp("plain") / "a",
        base,
        task="text-generation",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        seed=1,
    )


@pytest.fixture
def speaking(base: Path, plain: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the adapter with a tokenizer of its own, which ``change`` edits, as transformers saves it."""

    def make(name: str = "speaking", change: Callable[[Any], None] = lambda tokenizer: None) -> Path:
        folder = Path(shutil.copytree(plain, tmp_path / name))
        tokenizer = AutoTokenizer.from_pretrained(base)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def with_template(tokenizer: Any) -> None:
    tokenizer.chat_template = ALPACA


def expected(tokenizer: Any, **variables: Any) -> list[int]:
    found: list[int] = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False, **variables
    )
    return found


def encoded(view: Any, prompt: Any = "good day", **options: Any) -> list[int]:
    return view.generator.encode(prompt, Options(**options))


LAYOUTS: dict[str, dict[str, str]] = {
    "chat_template.jinja": {"chat_template.jinja": ALPACA},
    "in the config": {"tokenizer_config.json": json.dumps({"chat_template": ALPACA})},
    "named in the config": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "default", "template": ALPACA}, {"name": "rag", "template": "no"}]}
        )
    },
    "of a processor": {"chat_template.json": json.dumps({"chat_template": ALPACA})},
    "named in files": {"chat_template.jinja": ALPACA, "additional_chat_templates/rag.jinja": "no"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_template_in_every_layout(layout: str, base: Path, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "a"))
    for name, text in LAYOUTS[layout].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    said: list[str] = []
    export(base, {"a": folder, "plain": plain}, tmp_path / "bundle", announce=said.append)
    assert "adapter a: its chat template is used (the base has another)" in said
    assert not any("adapter plain" in line and "template" in line for line in said)
    model = runtime.open(tmp_path / "bundle")
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert encoded(model.adapter("plain")) == encoded(model.base) == expected(tokenizer)
    tokenizer.chat_template = ALPACA
    assert encoded(model.adapter("a")) == expected(tokenizer)
    assert encoded(model.adapter({"a": 0.7, "plain": 0.3})) == expected(tokenizer), "the larger share of a blend"
    assert encoded(model.adapter("a", scale=0.5)) == expected(tokenizer)


def test_template_variables(base: Path, speaking: Callable[..., Path], tmp_path: Path) -> None:
    folder = speaking(change=with_template)
    export(base, {"a": folder}, tmp_path / "bundle")
    view, tokenizer = runtime.open(tmp_path / "bundle").adapter("a"), AutoTokenizer.from_pretrained(folder)
    assert encoded(view, enable_thinking=False) == expected(tokenizer, enable_thinking=False) != expected(tokenizer)
    assert encoded(view, chat_template_kwargs={"enable_thinking": False}) == expected(tokenizer, enable_thinking=False)
    assert encoded(view, MESSAGES, tools=TOOLS) == expected(tokenizer, tools=TOOLS)
    assert view.generate(MESSAGES, tools=TOOLS, max_new_tokens=2).prompt_tokens == len(expected(tokenizer, tools=TOOLS))
    conversation = view.conversation()
    assert conversation.say("good day", tools=TOOLS, max_new_tokens=2).prompt_tokens == len(
        expected(tokenizer, tools=TOOLS)
    )
    with pytest.raises(InputError, match="does not read documents"):
        encoded(view, documents=[{"text": "x"}])
    with pytest.raises(InputError, match="tools is for the chat template"):
        encoded(view, tools=TOOLS, chat=False)
    with pytest.raises(InputError, match="add_generation_prompt is what the prompt itself says"):
        encoded(view, chat_template_kwargs={"add_generation_prompt": False})
    with pytest.raises(InputError, match="tools is a list"):
        encoded(view, tools="weather")


def test_a_template_for_tools_is_used_with_tools(base: Path, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "a"))
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": ALPACA}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    export(base, {"a": folder}, tmp_path / "bundle")
    view, tokenizer = runtime.open(tmp_path / "bundle").adapter("a"), AutoTokenizer.from_pretrained(base)
    assert encoded(view) == expected(tokenizer)
    tokenizer.chat_template = ALPACA
    assert encoded(view, MESSAGES, tools=TOOLS) == expected(tokenizer, tools=TOOLS)


def ending_with(base: Path, folder: Path, token: int, prompt: list[int]) -> None:
    """Set the adapter's head so that it says ``token`` after ``prompt``."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, is_trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
        hidden = model.base_model.model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        head = model.base_model.model.lm_head
        head.lora_A["default"].weight[0] = hidden / (hidden @ hidden)
        head.lora_B["default"].weight[token, 0] = 200.0
    model.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
def test_the_adapters_end_tokens_end_its_texts_alone(base: Path, tmp_path: Path) -> None:
    """Rows of one batch end each at its own token; the base's own still ends all of them."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = save_lora(
        tmp_path / "a", base, task="text-generation", task_type="CAUSAL_LM", target_modules=["lm_head"], seed=1
    )
    ending_with(base, folder, 0, expected(tokenizer))
    shutil.copytree(folder, tmp_path / "b")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    said: list[str] = []
    export(base, {"a": folder, "b": tmp_path / "b"}, tmp_path / "bundle", announce=said.append)
    assert "adapter a: its end token (eos) is <|endoftext|>, the base's is <|im_end|>" in said
    model = runtime.open(tmp_path / "bundle")
    assert (model.adapter("a").end_tokens, model.adapter("b").end_tokens, model.base.end_tokens) == ({0, 2}, {2}, {2})
    one, other = model.generate(["good day"] * 2, adapters=["a", "b"], max_new_tokens=4)
    assert (one.tokens, one.finish_reason) == ((0,), "eos")
    assert (other.tokens[0], other.finish_reason) == (0, "length")
    assert model.adapter("a").conversation().say("good day", max_new_tokens=4).tokens == (0,)
    view = model.adapter("b")
    for stop, eos, finish in ((["<|endoftext|>"], None, "stop"), (None, "<|endoftext|>", "eos"), (None, [0], "eos")):
        found = view.generate("good day", max_new_tokens=4, stop=stop, eos=eos)
        assert (found.tokens, found.text, found.finish_reason) == ((0,), "", finish)
    with pytest.raises(
        InputError, match=r"'<\|endoftext\|>x' holds the special token '<\|endoftext\|>' among other text"
    ):
        view.generate("good day", stop="<|endoftext|>x")
    with pytest.raises(InputError, match="'<none>' is no token of this tokenizer"):
        view.generate("good day", eos="<none>")


def test_generation_defaults_of_the_adapter(base: Path, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "a"))
    defaults = {"max_new_tokens": 3, "eos_token_id": [7, 2], "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(defaults), encoding="utf-8")
    said: list[str] = []
    export(base, {"a": folder}, tmp_path / "bundle", announce=said.append)
    assert any("its generation defaults are used: eos_token_id [7, 2], max_new_tokens 3" in line for line in said)
    view = runtime.open(tmp_path / "bundle").adapter("a")
    assert (view.end_tokens, view.generator.defaults.new_tokens) == ({2, 7}, 3)
    assert view.generator.defaults.repetition_penalty == 1.3
    assert runtime.open(tmp_path / "bundle").base.end_tokens == {2}


def spare_rows(base: Path, folder: Path) -> Path:
    """The base with embedding rows that its tokenizer does not use."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


def test_added_tokens_with_trained_rows(base: Path, tmp_path: Path) -> None:
    """PEFT's logits for a text with the adapter's own tokens, over a tied embedding."""
    roomy = spare_rows(base, tmp_path / "roomy")
    tokenizer = AutoTokenizer.from_pretrained(roomy)
    tokenizer.add_tokens(["<tag>", "<loc>"], special_tokens=True)
    rows = tokenizer.convert_tokens_to_ids(["<tag>", "<loc>"])
    folder = save_lora(
        tmp_path / "a", roomy, task="text-generation", task_type="CAUSAL_LM", target_modules=["q_proj"], seed=3, scale=0.4,
        trainable_token_indices={"embed_tokens": rows},
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    said: list[str] = []
    done = export(roomy, {"a": folder}, tmp_path / "bundle", announce=said.append)
    assert "adapter a: its own tokenizer is used: 2 tokens that the base's lacks (<tag>, <loc>)" in said
    assert done.parity[0].max_difference <= 1e-4
    prompt = "<tag>the film <loc>was"
    model = runtime.open(tmp_path / "bundle")
    view = model.adapter("a")
    ids = tokenizer(prompt).input_ids
    assert view.generator.tokens.encode(prompt, special=True) == ids
    assert model.base.generator.tokens.encode(prompt, special=True) != ids
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(roomy), folder).eval()
    with torch.no_grad():
        wanted = peft(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.abs(view.decoder(1, 64).prefill([ids])[0] - wanted).max() <= 1e-4
    assert (tmp_path / "bundle/adapters/a.onnx_adapter").stat().st_size < 40_000, "two rows at both ends, no table"


def test_rows_of_a_batch_have_tokenizers_of_their_own(base: Path, plain: Path, tmp_path: Path) -> None:
    roomy = spare_rows(base, tmp_path / "roomy")
    folder = Path(shutil.copytree(plain, tmp_path / "a"))
    tokenizer = AutoTokenizer.from_pretrained(roomy)
    tokenizer.add_tokens(["<tag>"])
    tokenizer.save_pretrained(folder)
    export(roomy, {"a": folder, "plain": plain}, tmp_path / "bundle", force=True)
    model, prompt = runtime.open(tmp_path / "bundle"), "<tag>the film was"
    alone = {name: model.adapter(name).generate(prompt, chat=False, max_new_tokens=4) for name in ("a", "plain")}
    mixed = model.generate([prompt, prompt], adapters=["a", "plain"], chat=False, max_new_tokens=4)
    assert [each.prompt_tokens for each in mixed] == [len(tokenizer(prompt).input_ids), alone["plain"].prompt_tokens]
    assert mixed[0].prompt_tokens < mixed[1].prompt_tokens
    assert [each.tokens for each in mixed] == [alone["a"].tokens, alone["plain"].tokens]


def test_tokens_without_rows_are_refused_with_advice(base: Path, speaking: Callable[..., Path], tmp_path: Path) -> None:
    folder = speaking(change=lambda tokenizer: tokenizer.add_tokens(["<tag>"]))
    words = r"1 tokens that the base's embedding of \d+ rows has no place for \('<tag>'\).*resize_token_embeddings"
    with pytest.raises(AdapterMismatchError, match=words):
        export(base, {"a": folder}, tmp_path / "bundle")


def test_the_same_tokenizer_saved_again_is_not_kept_twice(
    base: Path, speaking: Callable[..., Path], tmp_path: Path
) -> None:
    export(base, {"a": speaking()}, tmp_path / "bundle")
    entry = read_bundle(tmp_path / "bundle").adapter("a")
    assert "tokenizer.json" not in entry.text
    assert runtime.open(tmp_path / "bundle").adapter("a").end_tokens == {2}


def test_add_blend_and_remove_keep_text_and_files_together(
    base: Path, plain: Path, speaking: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export(base, {"plain": plain}, bundle, slots="all-linear")
    folder = speaking(change=with_template)
    said: list[str] = []
    add(bundle, "a", folder, announce=said.append)
    assert "adapter a: its chat template is used (the base has another)" in said
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert encoded(runtime.open(bundle).adapter("a")) == expected(tokenizer)
    blend(bundle, {"a": 0.8, "plain": 0.2}, "mix")
    assert encoded(runtime.open(bundle).adapter("mix")) == expected(tokenizer)
    # An exported file carries its text in the folder beside it, and says so where that is missing or another.
    add(bundle, "copy", bundle / "adapters/a.onnx_adapter")
    assert encoded(runtime.open(bundle).adapter("copy")) == expected(tokenizer)
    for name in ("a.onnx", "a.onnx_adapter"):
        shutil.copyfile(bundle / "adapters" / name, tmp_path / name)
    with pytest.raises(AdapterError, match=r"has a chat_template\.jinja of its own, which is missing"):
        add(bundle, "late", tmp_path / "a.onnx_adapter")
    shutil.copytree(bundle / "adapters/a", tmp_path / "a")
    (tmp_path / "a/chat_template.jinja").write_text(CHAT, encoding="utf-8")
    with pytest.raises(AdapterError, match="is not the file that was exported with"):
        add(bundle, "late", tmp_path / "a.onnx_adapter")
    add(bundle, "a", plain, replace=True)
    assert not (bundle / "adapters/a/chat_template.jinja").exists()
    remove(bundle, "mix")
    assert not any(name.startswith("adapters/mix") for name in read_bundle(bundle).manifest.files)
    assert encoded(runtime.open(bundle).adapter("copy")) == expected(tokenizer)


def test_text_is_verified_like_all_else(base: Path, speaking: Callable[..., Path], tmp_path: Path) -> None:
    export(base, {"a": speaking(change=with_template)}, tmp_path / "bundle")
    path = tmp_path / "bundle" / read_bundle(tmp_path / "bundle").adapter("a").text["chat_template.jinja"]
    path.write_text(path.read_text(encoding="utf-8").replace("answer", "danger"), encoding="utf-8")
    with pytest.raises(CorruptBundleError, match=r"adapters/a/chat_template\.jinja"):
        runtime.open(tmp_path / "bundle")


def test_a_merged_adapters_text_is_the_bundles(base: Path, speaking: Callable[..., Path], tmp_path: Path) -> None:
    folder = speaking(change=with_template)
    export(base, {"a": folder}, tmp_path / "bundle", mode="merge")
    assert encoded(runtime.open(tmp_path / "bundle")) == expected(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "is not a tokenizer"),
        ("tokenizer_config.json", "[", "tokenizer_config.json"),
        ("tokenizer_config.json", "[1]", "holds an array where an object belongs"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is a number"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "has a name and a template"),
        ("generation_config.json", "{", "generation_config.json"),
    ],
)
def test_damaged_files_are_named(name: str, text: str, message: str, base: Path, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "a"))
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=message):
        export(base, {"a": folder}, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
