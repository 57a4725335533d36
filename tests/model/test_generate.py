"""Generation from a bundle against PyTorch and PEFT: greedy tokens are compared exactly, on tiny random weights."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import ADAPTERS, CONTEXT, OTHERS, build_causal_bundle, build_other

from edgepeft import runtime
from edgepeft.bundle import Bundle, hash_file, read_bundle
from edgepeft.bundle.manifest import dump_manifest
from edgepeft.errors import BundleError, InputError, UnknownAdapterError
from edgepeft.runtime import Runtime
from edgepeft.runtime.generation import decoder as decoders

PROMPTS = ["the film was", "a", "the end of the book was not very good", "naïve 日本 café"]
NAMES = [None, *ADAPTERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_causal_bundle(tmp_path_factory.mktemp("causal")).parent


@pytest.fixture(scope="module")
def opened(folder: Path) -> Runtime:
    return runtime.open(folder / "bundle", threads=1)


@pytest.fixture
def model(opened: Runtime) -> Runtime:
    return opened.use(None)


@pytest.fixture(scope="module")
def greedy(folder: Path) -> Callable[..., list[int]]:
    """``greedy(adapter, prompt, n)``: the tokens that Hugging Face's generate chooses, by PyTorch and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    models = {}
    for name in NAMES:
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        models[name] = (base if name is None else PeftModel.from_pretrained(base, folder / name)).eval()

    def get(adapter: str | None, prompt: str | list[dict[str, str]], count: int) -> list[int]:
        if isinstance(prompt, str):
            ids = tokenizer(prompt).input_ids
        else:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        inputs = torch.tensor([ids])
        with torch.no_grad():
            found = models[adapter].generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False
            )
        return [int(token) for token in found[0, len(ids) :]]

    return get


def edited(bundle: Path, target: Path, edit: Callable[[Path], None]) -> Path:
    """A copy of a bundle with files edited and hashed again."""
    shutil.copytree(bundle, target)
    edit(target)
    manifest = read_bundle(bundle).manifest
    files = {name: hash_file(target / name) for name in manifest.files if (target / name).is_file()}
    manifest = manifest.model_copy(update={"files": files})
    (target / "edgepeft.json").write_text(dump_manifest(manifest), encoding="utf-8")
    return target


def tokens(found: Any) -> list[int] | list[list[int]]:
    return [list(each.tokens) for each in found] if isinstance(found, list) else list(found.tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_pefts(model: Runtime, greedy: Callable[..., Any], name: str | None, prompt: str) -> None:
    found = model.use(name).generate(prompt, chat=False, max_new_tokens=40)
    assert list(found.tokens) == greedy(name, prompt, 40)
    assert found.adapter == name


def test_the_adapters_do_something(model: Runtime) -> None:
    found = {tuple(model.use(name).generate(PROMPTS[0], chat=False, max_new_tokens=20).tokens) for name in NAMES}
    assert len(found) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_goes_through_the_template(model: Runtime, greedy: Callable[..., Any], name: str | None) -> None:
    messages = [{"role": "system", "content": "be good"}, {"role": "user", "content": "the film?"}]
    wanted = greedy(name, messages, 30)
    model.use(name)
    assert tokens(model.generate(messages, max_new_tokens=30)) == wanted
    assert tokens(model.generate("the film?", system="be good", max_new_tokens=30)) == wanted
    assert tokens(model.generate("the film?", chat=False, max_new_tokens=30)) != wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_batch(model: Runtime, greedy: Callable[..., Any], name: str | None) -> None:
    found = model.use(name).generate(PROMPTS, chat=False, max_new_tokens=30, batch_size=3)
    assert tokens(found) == [greedy(name, prompt, 30) for prompt in PROMPTS]


def test_each_row_with_an_adapter_of_its_own(model: Runtime, greedy: Callable[..., Any]) -> None:
    names = ["wide", None, "narrow", "wide"]
    found = model.generate(PROMPTS, adapters=names, chat=False, max_new_tokens=30)
    assert tokens(found) == [greedy(name, prompt, 30) for name, prompt in zip(names, PROMPTS, strict=True)]
    assert [each.adapter for each in found] == names


def test_rows_end_apart(
    folder: Path, greedy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of a mixed batch ends at a token of its own; those that are left go on as they would alone."""
    names = ["wide", None, "narrow", "wide"]
    whole = [greedy(name, prompt, 30) for name, prompt in zip(names, PROMPTS, strict=True)]
    eos = [whole[0][4], whole[2][9]]
    wanted = [row[: next((i + 1 for i, token in enumerate(row) if token in eos), 30)] for row in whole]
    assert len({len(row) for row in wanted}) > 2
    sizes: list[int] = []
    keep = decoders.Decoder.keep
    monkeypatch.setattr(decoders.Decoder, "keep", lambda self, rows: (sizes.append(len(rows)), keep(self, rows))[1])
    for shared in (True, False):
        bundle = edited(
            folder / "bundle",
            tmp_path / str(shared),
            lambda copy: (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": eos})) and None,
        )
        opened = runtime.open(bundle, threads=1)
        opened.generator.signature = replace(opened.generator.signature, shared=shared)
        found = opened.generate(PROMPTS, adapters=names, chat=False, max_new_tokens=30)
        assert tokens(found) == wanted
        assert [each.finish_reason for each in found] == [
            "eos" if len(row) < 30 or row[-1] in eos else "length" for row in wanted
        ]
        assert sizes
        assert sizes == sorted(sizes, reverse=True)
        sizes.clear()


def test_a_cache_that_grows_by_concatenation(folder: Path, greedy: Callable[..., Any]) -> None:
    """What graphs without GroupQueryAttention need: the cache comes back a step longer each time."""
    opened = runtime.open(folder / "bundle", threads=1)
    assert opened.generator.signature.shared
    opened.generator.signature = replace(opened.generator.signature, shared=False)
    for name in NAMES:
        found = opened.use(name).generate(PROMPTS, chat=False, max_new_tokens=20)
        assert tokens(found) == [greedy(name, prompt, 20) for prompt in PROMPTS]


def test_without_logits_from(folder: Path, greedy: Callable[..., Any]) -> None:
    """A graph that computes every token's logits gives the same."""
    opened = runtime.open(folder / "bundle", threads=1)
    assert opened.generator.signature.logits_from
    opened.generator.signature = replace(opened.generator.signature, logits_from=False)
    found = opened.generate(PROMPTS, chat=False, max_new_tokens=20)
    assert tokens(found) == [greedy(None, prompt, 20) for prompt in PROMPTS]


def test_a_long_prompt_in_pieces_and_a_buffer_that_grows(
    model: Runtime, greedy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "CHUNK", 5)
    generator, prompt = model.use("wide").generator, PROMPTS[2]
    monkeypatch.setattr(
        generator, "decoder", lambda active, rows, capacity: type(generator).decoder(generator, active, rows, 4)
    )
    found = model.generate(prompt, chat=False, max_new_tokens=40)
    assert found.prompt_tokens > 10
    assert tokens(found) == greedy("wide", prompt, 40)


@pytest.mark.parametrize("limit", ["CHUNK", "LOGITS"])
def test_rows_that_are_read_one_by_one(
    model: Runtime, greedy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Batches whose prompts are long, or long apart: the same tokens, each row with its own adapter."""
    monkeypatch.setattr(decoders, limit, 8)
    names = ["wide", None, "narrow", "wide"]
    apart: list[int] = []
    each = decoders.Decoder._prefill_each
    monkeypatch.setattr(
        decoders.Decoder, "_prefill_each", lambda self, p, n: (apart.append(len(p)), each(self, p, n))[1]
    )
    found = model.generate(PROMPTS, adapters=names, chat=False, max_new_tokens=20)
    assert tokens(found) == [greedy(name, prompt, 20) for name, prompt in zip(names, PROMPTS, strict=True)]
    assert apart == [4]


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sliding windows, explicit positions, caches that grow: alone, in a ragged batch, in pieces, in a conversation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgepeft.pipeline import add_slots, capture, write_bundle

    source = build_other(tmp_path / "model", architecture)
    base = capture(source, task="text-generation")
    opened = runtime.open(write_bundle(tmp_path / "bundle", base, add_slots(base, [], reserve="all-linear"), []).path)
    reference, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)

    def wanted(prompt: str) -> list[int]:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            found = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        return [int(token) for token in found[0, ids.shape[1] :]]

    options: Any = {"chat": False, "max_new_tokens": 20}
    expected = [wanted(prompt) for prompt in PROMPTS]
    capfd.readouterr()
    assert tokens(opened.generate(PROMPTS, **options)) == expected
    assert capfd.readouterr().err == ""  # finding out how the graph treats its cache is not heard
    monkeypatch.setattr(decoders, "CHUNK", 4)
    assert [tokens(opened.generate(prompt, **options)) for prompt in PROMPTS] == expected
    chat = opened.conversation()
    for prompt in (PROMPTS[2], "the end of the film", PROMPTS[2]):
        found = chat.generate(prompt, **options)
        assert tokens(found) == wanted(prompt)
    assert found.reused_tokens >= 4


def test_run_gives_results_for_json(model: Runtime) -> None:
    (found,) = model.run(["a"])
    assert found == {
        **model.generate("a").as_dict(),
        **{k: v for k, v in found.items() if k.endswith(("_ms", "_second"))},
    }
    with pytest.raises(InputError, match="pairs"):
        model.run([("a", "b")])


def test_streamed_text_is_the_text(model: Runtime) -> None:
    for name in NAMES:
        stream = model.use(name).stream(PROMPTS[0], chat=False, max_new_tokens=40)
        pieces = list(stream)
        whole = model.generate(PROMPTS[0], chat=False, max_new_tokens=40)
        assert "".join(pieces) == stream.result.text == whole.text
        assert stream.result.tokens == whole.tokens
        assert len(pieces) > 5


def test_a_stop_string(model: Runtime) -> None:
    whole = model.generate(PROMPTS[0], chat=False, max_new_tokens=40)
    stop = whole.text[10:13]
    place = whole.text.find(stop)
    found = model.generate(PROMPTS[0], chat=False, max_new_tokens=40, stop=[stop, "never this"])
    assert (found.text, found.finish_reason) == (whole.text[:place], "stop")
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert len(found.tokens) < 40
    stream = model.stream(PROMPTS[0], chat=False, max_new_tokens=40, stop=stop)
    assert "".join(stream) == found.text


def test_a_stream_keeps_the_adapter_it_began_with(model: Runtime, greedy: Callable[..., Any]) -> None:
    stream = model.use("wide").stream(PROMPTS[0], chat=False, max_new_tokens=30)
    model.use("narrow")
    next(stream)
    model.use(None)
    list(stream)
    assert list(stream.result.tokens) == greedy("wide", PROMPTS[0], 30)
    assert stream.result.adapter == "wide"


def test_seeds(model: Runtime) -> None:
    def sample(seed: int | None, prompts: Any = PROMPTS[0]) -> Any:
        return tokens(model.generate(prompts, chat=False, max_new_tokens=20, temperature=1.5, seed=seed))

    assert sample(1) == sample(1) != sample(2)
    assert sample(None) != sample(None)
    rows = sample(3, [PROMPTS[0]] * 3)
    assert rows[0] == sample(3)
    assert rows[0] != rows[1] != rows[2]
    assert rows == tokens(
        model.generate([PROMPTS[0]] * 3, chat=False, max_new_tokens=20, temperature=1.5, seed=3, batch_size=1)
    )


def test_the_models_own_sampling_settings(folder: Path, model: Runtime, tmp_path: Path) -> None:
    settings = {
        "eos_token_id": 2,
        "do_sample": True,
        "temperature": 1.3,
        "top_k": 20,
        "top_p": 0.9,
        "max_new_tokens": 7,
    }
    bundle = edited(
        folder / "bundle",
        tmp_path / "b",
        lambda copy: (copy / "generation_config.json").write_text(json.dumps(settings)) and None,
    )
    own = runtime.open(bundle, threads=1)
    found = own.generate(PROMPTS[0], chat=False, seed=5)
    assert len(found.tokens) == 7
    asked = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "max_new_tokens": 7}
    assert found.tokens == model.generate(PROMPTS[0], chat=False, seed=5, **asked).tokens  # type: ignore[arg-type]
    greedy = model.generate(PROMPTS[0], chat=False, max_new_tokens=7)
    assert own.generate(PROMPTS[0], chat=False, temperature=0).tokens == greedy.tokens != found.tokens


def test_cancelled_between_tokens(model: Runtime) -> None:
    stream = model.stream(PROMPTS[0], chat=False, max_new_tokens=80)
    pieces = [next(stream)]
    stream.cancel()
    pieces += list(stream)
    result = stream.result
    assert result.finish_reason == "cancelled"
    assert "".join(pieces) == result.text
    assert 1 <= len(result.tokens) < 10


def test_cancelled_from_another_thread(model: Runtime) -> None:
    stream = model.stream(PROMPTS[0], chat=False, max_new_tokens=80)
    reading = threading.Event()

    def read() -> None:
        for _ in stream:
            reading.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(10)
    stream.cancel()
    reader.join(10)
    assert not reader.is_alive()
    assert stream.result.finish_reason in {"cancelled", "length"}  # it may have been done by then


def test_cancelled_while_the_prompt_is_read(model: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    stream = model.stream(PROMPTS[2], chat=False, max_new_tokens=20)
    stream.cancel()
    assert list(stream) == []
    assert (stream.result.finish_reason, stream.result.tokens) == ("cancelled", ())
    assert capfd.readouterr().err == ""
    # The session goes on to serve others.
    assert model.generate(PROMPTS[0], chat=False, max_new_tokens=3).finish_reason == "length"


def test_a_reader_that_leaves(model: Runtime) -> None:
    stream = model.stream(PROMPTS[0], chat=False, max_new_tokens=80)
    with pytest.raises(InputError, match="has not ended"):
        stream.result  # noqa: B018
    next(stream)
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert list(stream) == []


# Conversations. The reference is the same prompt without a cache; a stale cache gives other tokens, as the last test of the
# group shows.


def test_a_conversation_reuses_its_prefix(model: Runtime) -> None:
    model.use("wide")
    chat = model.conversation(system="good")
    first = chat.say("the film?", max_new_tokens=8)
    assert first.reused_tokens == 0
    second = chat.say("a", max_new_tokens=8)
    assert second.reused_tokens >= first.prompt_tokens
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    fresh = model.generate(list(chat.messages[:-1]), max_new_tokens=8)
    assert fresh.reused_tokens == 0
    assert (fresh.tokens, fresh.text, fresh.prompt_tokens) == (second.tokens, second.text, second.prompt_tokens)


@pytest.mark.parametrize("shared", [True, False])
def test_only_what_is_equal_is_reused(folder: Path, shared: bool) -> None:
    opened = runtime.open(folder / "bundle", threads=1).use("narrow")
    opened.generator.signature = replace(opened.generator.signature, shared=shared)
    chat = opened.conversation()
    options: Any = {"chat": False, "max_new_tokens": 12}
    reused = []
    for prompt in ("the film was good and", "the film was bad and the end", "the film was", "the film was", "book"):
        found = chat.generate(prompt, **options)
        assert found.tokens == opened.generate(prompt, **options).tokens
        reused.append(found.reused_tokens)
    lengths = [len(opened.generator.tokens.encode(p, special=True)) for p in ("the film was ", "the film was")]
    assert reused[0] == reused[4] == 0
    assert 0 < reused[1] <= lengths[0]
    assert reused[2] == reused[3] == lengths[1] - 1  # the last token is always computed: its logits are needed


USES: list[Callable[[Runtime], Runtime]] = [
    lambda r: r.use("wide"),
    lambda r: r.use("narrow"),
    lambda r: r.use(None),
    lambda r: r.use("wide", scale=0.5),
    lambda r: r.use("wide", scale=-2.0),
    lambda r: r.use({"wide": 0.5, "narrow": 1.0}),
    lambda r: r.use({"wide": -1.5, "narrow": 1.0}),
    lambda r: r.use({"wide": 0.5, "narrow": 1.0}, scale=3.0),
]


@pytest.mark.parametrize("before", USES)
@pytest.mark.parametrize("after", USES)
def test_another_adapter_drops_the_cache(model: Runtime, before: Any, after: Any) -> None:
    prompt, options = PROMPTS[2], {"chat": False, "max_new_tokens": 12}
    before(model)
    chat = model.conversation()
    chat.generate(prompt, **options)
    after(model)
    found = chat.generate(prompt, **options)
    same = before is after
    assert (found.reused_tokens > 0) == same
    assert found.tokens == model.generate(prompt, **options).tokens  # type: ignore[arg-type]


def test_blends_that_print_alike_are_not_alike(model: Runtime) -> None:
    chat = model.use({"wide": 0.5, "narrow": 0.25}).conversation()
    chat.generate(PROMPTS[0], chat=False, max_new_tokens=2)
    model.use({"wide": 0.5 + 1e-12, "narrow": 0.25})
    assert chat.generate(PROMPTS[0], chat=False, max_new_tokens=2).reused_tokens == 0


def test_a_stale_cache_would_show(model: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rely on: keys and values of another adapter give other tokens."""
    prompt, options = PROMPTS[2], {"chat": False, "max_new_tokens": 12}
    chat = model.use("narrow").conversation()
    chat.generate(prompt, **options)  # type: ignore[arg-type]
    wide = model.use("wide").view.active
    chat._identity = wide.identity
    chat._decoder._feeds = dict(model.engine.slot_values(wide))  # type: ignore[union-attr]
    chat._decoder._bind()  # type: ignore[union-attr]
    stale = chat.generate(prompt, **options)  # type: ignore[arg-type]
    assert stale.reused_tokens > 0
    assert stale.tokens != model.generate(prompt, **options).tokens  # type: ignore[arg-type]


def test_a_turn_that_was_cancelled(model: Runtime) -> None:
    chat = model.conversation()
    stream = chat.say_stream("the film?", max_new_tokens=30)
    with pytest.raises(InputError, match="still answering"):
        chat.say("a")
    next(stream)
    stream.cancel()
    list(stream)
    assert chat.messages[-1] == {"role": "assistant", "content": stream.result.text}
    again = chat.say("a", max_new_tokens=8)
    assert again.reused_tokens > 0
    assert again.tokens == model.generate(list(chat.messages[:-1]), max_new_tokens=8).tokens
    # A reader that leaves, before or after it began, leaves the conversation as it was.
    for begin in (False, True):
        before, stream = chat.messages, chat.say_stream("book", max_new_tokens=30)
        if begin:
            next(stream)
        stream.close()
        assert chat.messages == before
    # A late cancel ends nothing of the next turn.
    stream.cancel()
    assert chat.generate("a", max_new_tokens=4, chat=False).finish_reason == "length"


def test_a_turn_that_is_refused_changes_nothing(model: Runtime) -> None:
    chat = model.conversation()
    chat.say("the film?", max_new_tokens=4)
    before = chat.messages
    with pytest.raises(InputError, match="context is"):
        chat.say("good " * CONTEXT)
    with pytest.raises(InputError, match="at least one character"):
        chat.say("")
    assert chat.messages == before
    assert chat.say("a", max_new_tokens=4).reused_tokens > 0


# What is refused.


def test_context_overflow(model: Runtime) -> None:
    with pytest.raises(InputError, match=rf"the prompt has \d+ tokens; this model's context is {CONTEXT} tokens"):
        model.generate("日本" * CONTEXT, chat=False)
    with pytest.raises(
        InputError, match=rf"and {CONTEXT} new ones make \d+; this model's context is {CONTEXT}"
    ) as caught:
        model.generate(PROMPTS[0], chat=False, max_new_tokens=CONTEXT)
    room = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(model.generate(PROMPTS[0], chat=False, max_new_tokens=room).tokens) == room
    # Without a number the answer ends where the context does.
    assert len(model.generate(PROMPTS[0], chat=False).tokens) == room


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "the prompt is empty"),
        ("", {"chat": False}, "the prompt is empty"),
        ([], {}, "no prompts"),
        (["a", ""], {}, "the prompt is empty"),
        ([[]], {}, "no messages"),
        ([{"role": "user"}], {}, "message 1"),
        ([{"role": "user", "content": "a"}], {"chat": False}, "need the chat template"),
        ("a", {"chat": False, "system": "b"}, "system message needs the chat template"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens"),
        ("a", {"max_new_tokens": 1.5}, "max_new_tokens"),
        ("a", {"temperature": -0.1}, "temperature"),
        ("a", {"top_p": 0}, "top_p"),
        ("a", {"temperature": 0, "top_p": 2}, "top_p"),
        ("a", {"stop": ""}, "stop string"),
        ("a", {"seed": -1}, "seed"),
        ("a", {"adapters": ["wide"]}, "list of prompts"),
        (["a", "a"], {"adapters": ["wide"]}, "1 adapters for 2 prompts"),
        (["a"], {"batch_size": 0}, "batch_size"),
        ("\ud800", {"chat": False}, "valid Unicode"),
    ],
)
def test_refused(model: Runtime, prompt: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        model.generate(prompt, **options)


def test_an_unknown_adapter_for_a_row(model: Runtime) -> None:
    with pytest.raises(UnknownAdapterError, match="wide"):
        model.generate(["a"], adapters=["nope"])


def without(*names: str) -> Callable[[Path], None]:
    def edit(copy: Path) -> None:
        for name in names:
            (copy / name).unlink()

    return edit


def test_a_bundle_without_a_chat_template(folder: Path, tmp_path: Path, greedy: Callable[..., Any]) -> None:
    opened = runtime.open(edited(folder / "bundle", tmp_path / "b", without("chat_template.jinja")), threads=1)
    assert tokens(opened.generate(PROMPTS[0], max_new_tokens=20)) == greedy(None, PROMPTS[0], 20)  # raw by default
    for call in (
        lambda: opened.generate([{"role": "user", "content": "a"}]),
        lambda: opened.generate("a", chat=True),
        lambda: opened.conversation().say("a"),
    ):
        with pytest.raises(InputError, match="has no chat template"):
            call()


def test_a_bundle_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    opened = runtime.open(edited(folder / "bundle", tmp_path / "b", without("tokenizer.json")), threads=1)
    with pytest.raises(BundleError, match=r"holds no tokenizer\.json"):
        opened.generate("a")


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": -1}', '{"eos_token_id": "x"}'])
def test_a_generation_config_that_is_wrong(folder: Path, tmp_path: Path, content: str) -> None:
    bundle = edited(
        folder / "bundle", tmp_path / "b", lambda copy: (copy / "generation_config.json").write_text(content) and None
    )
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        runtime.open(bundle, threads=1).generate("a")


def test_a_bundle_for_another_task(bundle: Path) -> None:
    with pytest.raises(InputError, match="is for text-classification; generating needs a causal language model"):
        runtime.open(bundle).generate("a")


def test_files_changed_after_the_export(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "bundle", tmp_path / "b"))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"chat_template\.jinja has \d+ bytes, the manifest says"):
        runtime.open(copy, threads=1).generate("a")


def test_nothing_is_left_behind(model: Runtime) -> None:
    """Generation changes neither the session nor the base: the same bits before and after."""
    bundle: Bundle = model.bundle
    before = model.generate(PROMPTS[0], chat=False, max_new_tokens=20).tokens
    for name in NAMES[1:]:
        model.use(name).generate(PROMPTS, chat=False, max_new_tokens=5)
    assert model.use(None).generate(PROMPTS[0], chat=False, max_new_tokens=20).tokens == before
    bundle.verify()
    assert all(np.isfinite(value) for value in (model.generate("a", max_new_tokens=2).first_token_ms,))
