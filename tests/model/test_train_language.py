"""edgepeft.train on tiny random language models: what is learnt, what is written, and every refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_training import assert_same_weights

from edgepeft.errors import DataError, InputError
from edgepeft.train import ADAPTER_FILE, train_language_adapter
from edgepeft.train.corpus import Corpus, Row
from edgepeft.train.encode import Tokens, collate, encode, pack
from edgepeft.train.perplexity import measure, summarize

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
NAMES = ["red", "blue", "green", "grey", "pink", "gold"]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The answer repeats the colour of the question; numbers make every prompt distinct."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        name = str(generator.choice(NAMES))
        found.append({"prompt": f"colour {i:03d} {name}?", "completion": f"It is {name}."})
    return found


def others(count: int, seed: int) -> list[dict[str, str]]:
    """As :func:`rows`, and none of them a row of theirs: rows to measure on that are also learnt would be taken out of training."""
    return [{**row, "prompt": row["prompt"].replace("?", "!")} for row in rows(count, seed)]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level BPE of a few hundred tokens, ChatML, no beginning token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([f"{row['prompt']} {row['completion']}" for row in rows(200)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # as SmolLM2 has it: padding must not be learnt though it is the end token
        bos_token="<|im_start|>",
        chat_template=CHATML,
        model_max_length=256,
    )


def save_model(folder: Path, tokenizer: Any, **options: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            **options,
        }
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Llama, 2 layers of 32, grouped queries, tied head, random weights."""
    return save_model(tmp_path_factory.mktemp("llama"), tokenizer)


def train(model: Path, data: Path, out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "threads": 1, "progress": False, **options}
    return train_language_adapter(model, data, out, **settings)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def said(sequence: Tokens, tokenizer: Any) -> str:
    return str(tokenizer.decode(sequence.ids[sequence.learnt]))


def one(
    tokenizer: Any, *turns: tuple[str, str], kind: Any = "messages", chat: bool = True, length: int = 256
) -> Tokens:
    corpus = Corpus(kind, (Row(turns, "here"),), "here")
    return encode(corpus, tokenizer, max_length=length, chat=chat).sequences[0]


# What is learnt


def test_of_a_chat_only_the_assistants_turns_are_learnt(tokenizer: Any) -> None:
    turns = (
        ("system", "Be kind."),
        ("user", "red?"),
        ("assistant", "It is red."),
        ("user", "x"),
        ("assistant", "grey"),
    )
    found = one(tokenizer, *turns)
    assert said(found, tokenizer) == "It is red.<|im_end|>grey<|im_end|>"
    assert tokenizer.decode(found.ids).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")


def test_a_template_with_generation_marks_gives_the_same(tokenizer: Any) -> None:
    import copy

    marked = copy.deepcopy(tokenizer)
    marked.chat_template = MARKED
    turns = (("user", "red?"), ("assistant", "It is red."), ("user", "x"), ("assistant", "grey"))
    mine, theirs = one(tokenizer, *turns), one(marked, *turns)
    assert np.array_equal(mine.ids, theirs.ids)
    assert np.array_equal(mine.learnt, theirs.learnt)


def test_plain_prompts_end_with_the_end_token(tokenizer: Any) -> None:
    found = one(tokenizer, ("user", "colour red?"), ("assistant", " It is red."), kind="completion", chat=False)
    assert tokenizer.decode(found.ids) == "colour red? It is red.<|im_end|>"
    assert said(found, tokenizer) == " It is red.<|im_end|>"


def test_every_token_of_a_text_but_the_first_is_learnt_once(tokenizer: Any) -> None:
    text = " ".join(f"{row['prompt']} {row['completion']}" for row in rows(20))
    corpus = Corpus("text", (Row((("text", text),), "here"),), "here")
    pieces = encode(corpus, tokenizer, max_length=32, chat=False).sequences
    assert all(len(piece.ids) <= 32 for piece in pieces)
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert [int(i) for piece in pieces for i in piece.ids[piece.learnt]] == whole[1:]


def test_padding_is_not_learnt_though_it_is_the_end_token(tokenizer: Any) -> None:
    sequences = [one(tokenizer, ("user", "a" * n), ("assistant", "It is red.")) for n in (1, 30)]
    batch = collate([[s] for s in sequences], tokenizer.pad_token_id)
    assert int((batch["labels"] >= 0).sum()) == sum(s.targets for s in sequences)
    assert int(batch["attention_mask"].sum()) == sum(len(s.ids) for s in sequences)


def test_long_rows_are_cut_and_counted_and_rows_without_room_are_left_out(tokenizer: Any) -> None:
    short, long = ("user", "x"), ("user", "grey " * 40)
    corpus = Corpus(
        "messages",
        tuple(
            Row(turns, "here")
            for turns in (
                (short, ("assistant", "yes")),
                (short, ("assistant", "It is " * 40)),
                (long, ("assistant", "y")),
            )
        ),
        "here",
    )
    found = encode(corpus, tokenizer, max_length=40, chat=True)
    assert (len(found.sequences), found.cut, found.skipped) == (2, 1, 1)
    assert [len(s.ids) for s in found.sequences][1] == 40
    with pytest.raises(DataError, match="in all 1 rows the prompt alone fills the limit of 40 tokens"):
        encode(Corpus("messages", corpus.rows[2:], "here"), tokenizer, max_length=40, chat=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('System role not supported') }}",
            "here: the chat template fails on the roles user, assistant",
        ),
        ("{{ messages[0]['content'] | nosuch }}", "fails on .*TemplateAssertionError"),
        ("{{ messages + 1 }}", "fails on .*TypeError"),
        # What was said is dropped from the history, as reasoning models' templates do.
        (
            "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}<{{ m['content'] }}>{% endif %}{% endfor %}",
            r"message 2 \(assistant\) differently .*generation %} … ",
        ),
    ],
)
def test_templates_that_fail(tokenizer: Any, template: str, message: str) -> None:
    import copy

    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(DataError, match=message):
        one(broken, ("user", "a"), ("assistant", "red"), ("user", "c"), ("assistant", "grey"))


# Packing


def packed_models(tokenizer: Any) -> dict[str, Any]:
    import torch
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt2 = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
        gpt2.attn_pdrop = gpt2.embd_pdrop = gpt2.resid_pdrop = 0.0
        return {
            "llama": LlamaForCausalLM(LlamaConfig(**size, **heads, initializer_range=0.3)),
            "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(**size, **heads, sliding_window=8, initializer_range=0.3)),
            "gpt2": GPT2LMHeadModel(gpt2),
        }


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_packed_sequences_do_not_see_each_other(tokenizer: Any, name: str) -> None:
    """The loss of two blocks of ragged sequences, packed, against the same sequences one by one."""
    import torch

    model = packed_models(tokenizer)[name].eval()
    model.config.use_cache = False
    sequences = [
        one(tokenizer, ("user", row["prompt"] * (i % 3 + 1)), ("assistant", row["completion"]))
        for i, row in enumerate(rows(9))
    ]
    blocks = pack(sequences, 160)
    assert any(len(block) > 1 for block in blocks)
    batch = collate(blocks, tokenizer.pad_token_id)
    with torch.no_grad():
        packed = float(model(**batch).loss)
    # float32, sums in another order: 1e-5 of a loss of about 6, while a leak changes the second digit.
    assert packed == pytest.approx(summarize(measure(model, sequences, pad_id=0)).nll, abs=1e-5)


def test_an_architecture_that_mixes_packed_rows_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """Mamba's state runs through a row, whatever its position ids say."""
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer.save_pretrained(tmp_path / "mamba")
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5
    )
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    data = write(tmp_path / "d.jsonl", rows(20))
    with pytest.raises(InputError, match=r"MambaForCausalLM does not keep packed sequences apart.*--no-packing"):
        train(tmp_path / "mamba", data, tmp_path / "a", packing=True, target_modules=["x_proj"], epochs=1)


# Training


def test_files_record_and_a_falling_perplexity(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "colours"
    result = train(model, write(tmp_path / "d.jsonl", rows(120)), out, epochs=8, validation_fraction=0.2)
    assert {path.name for path in out.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", ADAPTER_FILE}
    assert (result.task, result.layout) == ("text-generation", "chat")
    assert (result.train_rows, result.validation_rows, result.cut_rows, result.skipped_rows) == (96, 24, 0, 0)
    # The model is random: nearly uniform over 360 tokens before, and the answers follow a fixed form.
    assert result.before.perplexity > 100
    assert result.after.perplexity < result.before.perplexity / 10
    assert result.change.nll == pytest.approx(result.after.nll - result.before.nll)
    assert result.change.nll < -10 * (result.change.standard_error or 1)

    record = json.loads((out / ADAPTER_FILE).read_text())
    assert record["task"] == "text-generation"
    assert record["metrics"]["after"]["perplexity"] == result.after.perplexity
    assert record["metrics"]["after"]["tokens"] == result.validation_tokens
    assert record["arguments"]["learning_rate"] == 1e-2
    assert len(record["metrics"]["train_loss"]) == 8
    assert record["metrics"]["train_tokens"] == result.train_tokens == 96 * 5 * 8  # five tokens an answer
    assert "labels" not in record

    config = json.loads((out / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == projections
    saved = tensors(out)
    assert len(saved) == 2 * 7 * 2  # layers x projections x (A, B); the head is not among them
    assert all(np.abs(value).max() > 0 for value in saved.values())
    assert result.trainable_parameters == sum(value.size for value in saved.values())


@pytest.mark.parametrize("options", [{}, {"epochs": 10, "patience": None}], ids=["last", "best"])
def test_the_saved_adapter_has_the_perplexity_that_was_reported(
    model: Path, tokenizer: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Recomputed with PEFT and transformers alone, one row at a time.

    Held-out answers that name another colour make an early epoch best: what is learnt later is to repeat the question's.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    held = others(30, seed=9)
    if options:
        wrong = dict(zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))
        held = [{**row, "completion": f"It is {wrong[row['completion'][6:-1]]}."} for row in held]
    result = train(
        model,
        write(tmp_path / "d.jsonl", rows(60)),
        tmp_path / "a",
        validation=write(tmp_path / "v.jsonl", held),
        **options,
    )
    if options:
        assert result.best_epoch <= 7 < result.epochs == 10
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    for network, reported in ((adapted, result.after), (None, result.before)):
        total, count = 0.0, 0
        for row in held:
            chat = [{"role": "user", "content": row["prompt"]}]
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            start = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([tokenizer(f"{prompt}{row['completion']}<|im_end|>")["input_ids"]])
            labels = ids.clone()
            labels[:, :start] = -100
            with torch.no_grad():
                if network is None:
                    with adapted.disable_adapter():
                        loss = adapted(ids, labels=labels).loss
                else:
                    loss = network(ids, labels=labels).loss
            total, count = total + float(loss) * (ids.shape[1] - start), count + ids.shape[1] - start
        assert count == reported.tokens
        # float32, other batches: 1e-3 of the perplexity is far above rounding and far below another checkpoint.
        assert math.exp(total / count) == pytest.approx(reported.perplexity, rel=1e-3)


def test_same_seed_same_weights_and_other_seed_others(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", rows(40))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(model, data, tmp_path / name, seed=seed, epochs=1)
    a, c = (tensors(tmp_path / name) for name in "ac")
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not all(np.array_equal(a[name], c[name]) for name in a)


def test_a_step_weighs_every_token_alike_over_its_batches(model: Path, tmp_path: Path) -> None:
    """One step over all rows, answers of very different length: its loss is the base's, however it is batched."""
    found = [{**row, "completion": row["completion"] * (1 + 8 * (i % 2))} for i, row in enumerate(rows(12))]
    data, held = write(tmp_path / "d.jsonl", found), write(tmp_path / "v.jsonl", others(4, seed=1))
    same = train(model, held, tmp_path / "x", validation=data, max_steps=1).before.nll
    for batch, accumulation, packing in ((12, 1, False), (2, 6, False), (1, 12, False), (1, 4, True)):
        options = {"batch_size": batch, "gradient_accumulation": accumulation, "packing": packing, "max_length": 160}
        train(model, data, tmp_path / "a", validation=held, epochs=1, **options)
        record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
        if packing:
            assert record["metrics"]["steps"] >= 1
        else:
            assert record["metrics"]["steps"] == 1
            assert record["metrics"]["train_loss"][0] == pytest.approx(same, abs=2e-4)


def test_checkpointing_changes_nothing_but_memory(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", rows(40))
    for name, checkpointing in (("a", False), ("b", True)):
        train(model, data, tmp_path / name, epochs=1, gradient_checkpointing=checkpointing)
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(np.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_text_is_packed_and_learnt(model: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(" ".join(row["completion"] for row in rows(150, seed=number)))
    options = {"validation_fraction": 0.5, "max_validation_tokens": 500, "epochs": 8}
    result = train(model, tmp_path, tmp_path / "out" / "a", max_length=64, **options)
    assert result.layout == "text"
    assert 300 < result.validation_tokens <= 500
    assert result.after.perplexity < result.before.perplexity / 3


def test_steps_schedules_and_options_reach_the_adapter(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", rows(40))
    for schedule in ("cosine", "constant"):
        options = {"schedule": schedule, "rank": 4, "alpha": 32, "use_dora": True, "use_rslora": True}
        result = train(
            model, data, tmp_path / schedule, max_steps=3, epochs=50, target_modules=["q_proj", "v_proj"], **options
        )
        assert (result.steps, result.epochs) == (3, 1)
    config = json.loads((tmp_path / "cosine" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"], config["use_rslora"]) == (4, 32, True, True)
    assert set(config["target_modules"]) == {"q_proj", "v_proj"}
    one, two = tensors(tmp_path / "cosine"), tensors(tmp_path / "constant")
    assert not all(np.array_equal(one[name], two[name]) for name in one)


def test_messages_and_a_template_of_ones_own(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = bare.pad_token = None
    folder = save_model(tmp_path / "bare", bare)
    data = write(
        tmp_path / "d.jsonl",
        [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows(40)
        ],
    )
    with pytest.raises(InputError, match=r"no chat template.*--chat-template FILE"):
        train(folder, data, tmp_path / "a")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    result = train(folder, data, tmp_path / "a", chat_template=tmp_path / "chatml.jinja")
    assert result.after.perplexity < result.before.perplexity
    assert (tmp_path / "a" / "chat_template.jinja").read_text() == CHATML
    # Without a template, prompt and completion stand as they are.
    plain = train(folder, write(tmp_path / "p.jsonl", rows(40)), tmp_path / "b", epochs=1)
    assert plain.layout == "plain"
    with pytest.raises(InputError, match="no chat template"):
        train(folder, tmp_path / "p.jsonl", tmp_path / "c", chat=True)


def test_the_adapter_is_read_by_the_rest_of_edgepeft(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from edgepeft.adapters.base_weights import HeldWeights
    from edgepeft.adapters.read import read_adapter
    from edgepeft.base.load import load_model

    train(model, write(tmp_path / "d.jsonl", rows(20)), tmp_path / "a", epochs=1)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    parameters = {name: parameter.detach().numpy() for name, parameter in loaded.named_parameters()}
    found = read_adapter(tmp_path / "a", name="colours", weights=HeldWeights(parameters))
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert found.base_identity == record["base_identity"] == load_model(model, task="text-generation").identity
    assert {site.rpartition(".")[2] for site in found.sites} >= {"q_proj", "down_proj"}


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be greater than 0"),
        ({"max_steps": 0}, "max_steps must be greater than 0"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 4096}, "more than the 256 tokens"),
        ({"schedule": "sawtooth"}, "schedule must be one of linear, cosine, constant"),
        ({"warmup": 2}, "warmup must lie between"),
        ({"target_modules": ["query"]}, r"named 'query'.*those that exist: .*q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"lm_head cannot be adapted: embedding and head share one weight"),
        ({"learning_rate": 1e38}, r"loss became (nan|inf).*lower the learning rate"),
        ({"max_length": 8}, "the prompt alone fills the limit of 8 tokens"),
        ({"validation": "text.txt"}, "holds text rows and .* completion rows"),
        ({"chat_template": "none.jinja"}, r"cannot read data file .*none\.jinja"),
    ],
)
def test_refusals_say_what_is_wrong_and_write_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some text")
    data = write(tmp_path / "d.jsonl", rows(20))
    with pytest.raises(InputError, match=message):
        train(model, data, tmp_path / "a", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "text.txt"]


def test_a_resized_vocabulary_is_refused_with_both_sizes(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    larger = copy.deepcopy(tokenizer)
    folder = save_model(tmp_path / "model", larger, vocab_size=len(larger))
    larger.add_tokens(["<colour>", "</colour>"])
    larger.save_pretrained(folder)
    size = len(tokenizer)
    with pytest.raises(
        InputError, match=rf"tokenizer has {size + 2} tokens and the model embeddings for {size}\. .*Resize"
    ):
        train(folder, write(tmp_path / "d.jsonl", rows(20)), tmp_path / "a")


def test_models_that_are_no_decoders(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

    data = write(tmp_path / "d.jsonl", rows(20))
    size = len(tokenizer)
    bert = BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    for name, network in (
        ("bert", BertModel(bert)),
        (
            "t5",
            T5ForConditionalGeneration(
                T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
            ),
        ),
        (
            "headless",
            LlamaModel(
                LlamaConfig(
                    vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
                )
            ),
        ),
    ):
        network.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=r"not a causal language model|checkpoint lacks"):
            train(tmp_path / name, data, tmp_path / "a")
    with pytest.raises(InputError, match="neither a folder"):
        train(tmp_path / "none", data, tmp_path / "a")


def test_a_tokenizer_without_an_end_cannot_learn_plain_completions(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    endless = copy.deepcopy(tokenizer)
    endless.eos_token = endless.pad_token = None
    folder = save_model(tmp_path / "model", endless)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        train(folder, write(tmp_path / "d.jsonl", rows(20)), tmp_path / "a", chat=False)


# The command


def call(*arguments: object) -> Any:
    from click.testing import CliRunner

    from edgepeft.cli import main

    result = CliRunner().invoke(main, ["train", *(str(a) for a in arguments)])
    assert result.exit_code != 70, result.stderr
    return result


def test_the_command_tells_the_task_by_the_columns(model: Path, tmp_path: Path) -> None:
    found = rows(40)
    found[3]["completion"] *= 40  # longer than the limit
    found[4]["prompt"] *= 40  # leaves no room for an answer
    data = write(tmp_path / "d.jsonl", [{"q": row["prompt"], "a": row["completion"]} for row in found])
    arguments = ["--model", model, "--data", data, "--out", tmp_path / "a", "--prompt", "q", "--completion", "a"]
    done = call(*arguments, "--epochs", 1, "--max-length", 64)
    assert done.exit_code == 0, done.stderr
    assert "1 rows are longer than the limit and were cut" in done.stderr
    assert "1 rows were left out: their prompt alone fills the limit" in done.stderr
    assert "perplexity " in done.stdout
    assert " nats a token; epoch 1 of 1)" in done.stdout
    done = call(*arguments, "--epochs", 1, "--json", "--plain", "--target-modules", "q_proj,v_proj")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["layout"] == "plain"


def test_bare_text_is_told_by_the_model(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [{"text": row["completion"] + str(i)} for i, row in enumerate(rows(30))])
    done = call("--model", model, "--data", data, "--out", tmp_path / "a", "--epochs", 1, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["layout"] == "text"


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ('{"prompt": "a", "completion": "b"}', ["--pair", "x"], "--pair: not an option of text-generation"),
        ('{"text": "a", "label": "b"}', ["--packing"], "--packing: not an option of text-classification"),
        ('{"question": "a", "answer": "b"}', [], "the columns question, answer. Expected 'prompt' and 'completion'"),
        ('{"prompt": "a", "completion": ""}', [], "line 1: 'completion' is empty"),
        ('{"prompt": "a", "completion": "b"}', [], "only one distinct prompt"),
        ('{"messages": [{"role": "user", "content": "b"}]}', [], "no message has the role 'assistant'"),
        ("not json", ["--task", "text-generation"], "line 1: not a JSON object"),
    ],
)
def test_the_command_refuses_with_exit_code_2(
    model: Path, tmp_path: Path, content: str, options: list[str], says: str
) -> None:
    (tmp_path / "d.jsonl").write_text(content + "\n")
    done = call("--model", model, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "a", *options)
    assert done.exit_code == 2
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_loss_that_is_no_number_keeps_the_best_epoch(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import transformers

    kept, calls = transformers.Trainer.training_step, []

    def broken(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        loss = kept(self, *arguments, **options)
        return loss * float("nan") if len(calls) == 20 else loss  # 54 rows are 7 steps: in the third epoch

    monkeypatch.setattr(transformers.Trainer, "training_step", broken)
    result = train(model, write(tmp_path / "d.jsonl", rows(60)), tmp_path / "a", epochs=5, patience=None)
    assert any("became nan at step 20" in warning and "best epoch before it" in warning for warning in result.warnings)
    assert all(np.isfinite(value).all() for value in tensors(tmp_path / "a").values())
    assert result.after.perplexity < result.before.perplexity


def test_rows_to_measure_on_are_not_trained_on(model: Path, tmp_path: Path) -> None:
    both = write(tmp_path / "v.jsonl", [*others(20, seed=1), *rows(4)])
    result = train(model, write(tmp_path / "d.jsonl", rows(40)), tmp_path / "a", validation=both, epochs=1)
    assert result.train_rows == 36
    assert any(warning.startswith("4 training rows had the same text") for warning in result.warnings)
    with pytest.raises(DataError, match="40 of the 40 training rows"):
        train(model, tmp_path / "d.jsonl", tmp_path / "b", validation=tmp_path / "d.jsonl")
