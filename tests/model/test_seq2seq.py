"""Encoder-decoder bundles: two graphs, one adapter; what is forced and what is written equals PEFT.

The reference is PEFT's unmerged model in float32, whole sequences without a cache; the tolerance is 1e-4 of the largest
logit, as everywhere. Adapters' numbers are random.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from encoder_decoder import MODELS, build_encoder_decoder_bundle
from hammer import generations, hammer

from edgepeft import runtime
from edgepeft.base.samples import bundle_batches
from edgepeft.bundle import SlotTable, read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.pipeline import Goal, add, export, plan_quantize, quantize, remove, validate
from edgepeft.pipeline._calibration_crossed import crossed_runs
from edgepeft.pipeline._quality_crossed import measure_answers
from edgepeft.quantize.calibrated import fit
from edgepeft.quantize.nbits import Rounded
from edgepeft.quantize.packing import BLOCK, Form
from edgepeft.quantize.sensitivity import Stage, divergence_between, sensitivity_of
from edgepeft.quantize.weights import matrices
from edgepeft.runtime import Runtime, View
from edgepeft.runtime.sessions import open_session

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``bundles(kind)``: a bundle with ``small`` and ``dora``, beside its ``model`` and adapters; do not change it."""
    root = tmp_path_factory.mktemp("encoder-decoders")
    return functools.cache(lambda kind: build_encoder_decoder_bundle(root / kind, kind))


@pytest.fixture(scope="module")
def folders(bundles: Callable[[str], Path]) -> Callable[[str], Path]:
    """``folders(kind)``: the model."""
    return lambda kind: bundles(kind).with_name("model")


@pytest.fixture(scope="module")
def sources(bundles: Callable[[str], Path]) -> Callable[[str], dict[str, Path]]:
    """``sources(kind)``: the adapters' checkpoints by name."""
    return lambda kind: {name: bundles(kind).with_name(name) for name in ("small", "wide", "dora")}


def rows_of(batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The token ids of each row, without its padding."""
    return [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def writes(model: Runtime, batch: dict[str, np.ndarray], count: int) -> list[list[int]]:
    """Greedy generation from token ids; rows up to their end token."""
    found = model.generate(rows_of(batch), max_new_tokens=count, temperature=0, repetition_penalty=1.0)
    return [list(each.tokens[:-1] if each.finish_reason == "eos" else each.tokens) for each in found]


def first_logits(view: Runtime | View, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of the first token that is written."""
    return view.decoder(len(batch["input_ids"]), 1).prefill([row.tolist() for row in rows_of(batch)])


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
        written[name] = [writes(model, batch, 8) for batch in batches]
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
        return first_logits(chosen, batch)

    plain = logits(model)
    half = logits(model.use("small", scale=0.5))
    assert np.array_equal(half, logits(model.use({"small": 0.5})))
    assert not np.array_equal(half, logits(model.use({"small": 0.5, "wide": -1.0})))
    assert np.array_equal(plain, logits(model.use(None)))


def test_merged(folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    source = sources("T5")["wide"]
    done = export(folders("T5"), {"wide": source}, tmp_path / "merged", mode="merge")
    assert done.parity[0].max_difference <= TOLERANCE
    model = runtime.open(tmp_path / "merged")
    (batch,) = bundle_batches(model.bundle, shapes=((3, 9),))
    assert writes(model, batch, 8) == peft_writes(folders("T5"), source, batch, 8)


def test_texts_in_and_out(bundles: Callable[[str], Path]) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    done = call(
        "run", bundles("T5"), "a good film", "the book was bad", "--adapter", "small", "--json", "--max-new-tokens", 20
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    model = runtime.open(bundles("T5")).use("small")
    ids = writes(model, model.encode(["a good film", "the book was bad"]), 20)
    assert [row["text"] for row in rows] == [model.encoder.decode(row) for row in ids]
    assert [row["tokens"][: len(row_ids)] for row, row_ids in zip(rows, ids, strict=True)] == ids
    assert all(row["text"] for row in rows)
    streamed = call("run", bundles("T5"), "a good film", "--adapter", "small", "--max-new-tokens", 9)
    assert streamed.exit_code == 0, streamed.output
    assert streamed.stdout.rstrip("\n") == model.generate("a good film", max_new_tokens=9).text
    assert "[9 tokens (length) after" in streamed.stderr
    with pytest.raises(InputError, match="at least 1"):
        model.generate(["a"], max_new_tokens=0)


@pytest.mark.parametrize("kind", list(MODELS))
def test_generate_in_ragged_and_mixed_batches(
    kind: str, folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], bundles: Callable[[str], Path]
) -> None:
    """Rows end at different times and have adapters of their own; reference: each alone, and PEFT."""
    model = runtime.open(bundles(kind))
    texts = ["a good film", "the book was bad and the plot was poor", "fine", "good"]
    names = ["small", None, "dora", "small"]
    alone = [model.use(name).generate(text, max_new_tokens=12).tokens for text, name in zip(texts, names, strict=True)]
    together = model.use(None).generate(texts, adapters=names, max_new_tokens=12, batch_size=3)
    assert [found.tokens for found in together] == alone
    assert [found.adapter for found in together] == names
    assert len({found.tokens for found in together}) > 1
    for text, name, tokens in zip(texts, names, alone, strict=True):
        source = None if name is None else sources(kind)[name]
        ends = tokens[:-1] if model.use(name).generate(text, max_new_tokens=12).finish_reason == "eos" else tokens
        assert [list(ends)] == peft_writes(folders(kind), source, model.encode([text]), 12)


def test_sampling_stops_and_streams(bundles: Callable[[str], Path]) -> None:
    model = runtime.open(bundles("T5")).use("small")
    text = "the plot was poor"
    greedy = model.generate(text, max_new_tokens=12)
    assert greedy.finish_reason == "length"
    assert "".join(model.stream(text, max_new_tokens=12)) == greedy.text
    first = model.generate(text, max_new_tokens=12, temperature=5.0, seed=3)
    assert first.tokens == model.generate(text, max_new_tokens=12, temperature=5.0, seed=3).tokens
    assert first.tokens != greedy.tokens != model.generate(text, max_new_tokens=12, temperature=5.0, seed=4).tokens
    words = greedy.text.split()
    stopped = model.generate(text, max_new_tokens=12, stop=words[1])
    assert stopped.finish_reason == "stop"
    assert stopped.text == greedy.text[: greedy.text.index(words[1])]
    # What was read is no part of what is written: a token of the input is not made unlikely, a written one is.
    least = model.generate(text, max_new_tokens=12, repetition_penalty=1e6)
    assert least.tokens[0] == greedy.tokens[0]
    assert len(set(least.tokens)) == len(least.tokens)
    assert len(set(greedy.tokens)) < len(greedy.tokens)
    model.use("dora")
    assert model.generate(text, max_new_tokens=12).tokens != greedy.tokens


def test_the_token_that_answers_begin_with(
    folders: Callable[[str], Path], sources: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    """``forced_bos_token_id``, as BART and mBART have it."""
    folder = Path(shutil.copytree(folders("Bart"), tmp_path / "bart"))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "forced_bos_token_id": 7}))
    export(folder, {"small": sources("Bart")["small"]}, tmp_path / "bundle", force=True)
    model = runtime.open(tmp_path / "bundle").use("small")
    batch = model.encode(["a good film", "the book was bad"])
    expected = peft_writes(folder, sources("Bart")["small"], batch, 6)
    assert [row[0] for row in expected] == [7, 7]
    assert writes(model, batch, 6) == expected
    assert model.generate("a good film", max_new_tokens=6).tokens[: len(expected[0])] == tuple(expected[0])


@pytest.mark.parametrize("variant", ["int8", "q4"])
def test_quantized(variant: str, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """Both graphs shrink, and the variant swaps. Reference: fp32 and what rounding does to random weights of width 32."""
    own = Path(shutil.copytree(bundles("T5"), tmp_path / "own"))
    # Random tokens are judged here, and the tiny tokenizer knows next to nothing of a text: nothing is fitted to it.
    done = quantize(own, variant, method="rtn" if variant == "q4" else None)
    entry = done.bundle.manifest.variants[variant]
    assert (entry.file, entry.decoder_file) == (
        f"onnx/encoder_model_{variant}.onnx", f"onnx/decoder_with_past_model_{variant}.onnx",
    )  # fmt: skip
    assert done.quantized.share > 0.8
    assert done.bytes_after < done.bytes_before
    done.bundle.verify()
    full, small = runtime.open(own), runtime.open(own, variant=variant)
    (batch,) = bundle_batches(full.bundle, shapes=((3, 9),))
    seen = {}
    for name in (None, "small", "dora", None):
        expected = first_logits(full.adapter(name), batch)
        found = first_logits(small.adapter(name), batch)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > (0.99 if variant == "int8" else 0.8)
        assert name not in seen or np.array_equal(seen[name], found), "base restored bit for bit"
        seen[name] = found
    assert not np.allclose(seen["small"], seen[None], atol=0.1)
    assert len(small.generate("a good film", max_new_tokens=5).tokens) == 5
    assert validate(own).passed


@pytest.mark.parametrize("kind", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
def test_both_graphs_are_fitted(kind: str, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """By what fp32 writes about texts, each adapter on; it loses less than rounding to nearest on answers kept apart."""
    own = Path(shutil.copytree(bundles(kind), tmp_path / "own"))
    done = quantize(own, "q4", rows=20)
    assert done.method == "gptq"
    counts = done.bundle.manifest.provenance["calibration"]["q4"]["texts"]
    assert counts["*"] == 16
    assert set(counts) == {"*", "small", "dora"}
    entry = done.bundle.manifest.variants["q4"]
    for file in (entry.file, entry.decoder_file):
        graph = ir.load(own / str(file))
        nodes = [node for node in graph.graph if node.op_type == "MatMulNBits"]
        assert nodes
        assert all(len(node.inputs) > 5 for node in nodes), "every layer of both graphs has its bias"
    assert [row.adapter for row in done.quality] == [None, "small", "dora"]
    answers = crossed_runs(read_bundle(own), {}, rows=20).answers
    assert answers is not None
    assert [sum(len(answer) for _, answer in each) for each in answers.values()] == [row.tokens for row in done.quality]
    nearest = Path(shutil.copytree(bundles(kind), tmp_path / "nearest"))
    assert quantize(nearest, "q4", method="rtn").quality == ()
    lost = [np.mean([row.divergence for row in measure_answers(each, "q4", answers)]) for each in (own, nearest)]
    assert 0 < lost[0] < 0.9 * lost[1]
    texts = Examples(("a good film", "the book was bad", "a long end") * 4, None)
    again = quantize(own, "q4", data={"*": texts}, replace=True, measure=False)
    assert again.quality == ()


@pytest.mark.parametrize("kind", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
def test_one_size_for_both_graphs(
    kind: str, bundles: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices of encoder and decoder compete for the same bytes, by what each does to what the decoder writes."""
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    own = Path(shutil.copytree(bundles(kind), tmp_path / "own"))
    remove(own, "dora")
    runs: dict[str, Any] = {"rows": 8, "replace": True}
    even = quantize(own, "q4", **runs)
    budget = even.bytes_after + 7000  # of some 20,000 that all in 8 bits would take
    said: list[str] = []
    done = quantize(own, "q4", goal=Goal(bytes=budget), announce=said.append, **runs)
    assert done.front is not None
    assert even.bytes_after < done.bytes_after <= budget
    assert done.front.chosen[0] * 1e6 == pytest.approx(done.bytes_after, rel=0.03)
    assert len(done.front.forms) > 1
    assert {name.partition("/")[0] for name in done.front.sensitivity} == {"encoder", "decoder"}
    plan = plan_quantize(own, "q4", goal=Goal(bytes=budget), replace=True)
    assert plan.bytes == pytest.approx(budget, abs=3)
    # Judged on the same answers kept apart, by the graphs that the runtime opens.
    assert np.mean([row.divergence for row in done.quality]) < np.mean([row.divergence for row in even.quality])
    with pytest.raises(InputError, match=r"the smallest is .* MB"):
        quantize(own, "q4", goal=Goal(bytes=1000), announce=said.append, **runs)
    assert sum("one matrix rounded at a time" in line for line in said) == 1
    assert not any("known from an earlier run" in line for line in said), "shapes alone refuse it"
    quantize(own, "q4", goal=Goal(bytes=budget - 500), announce=said.append, **runs)
    assert sum("known from an earlier run" in line for line in said) == 1
    read_bundle(own).verify()


@pytest.mark.slow
def test_a_divergence_for_both_graphs(
    bundles: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    own = Path(shutil.copytree(bundles("T5"), tmp_path / "own"))
    first = quantize(own, "q4", rows=12, goal=Goal(bits=6)).front
    assert first is not None
    done = quantize(own, "q4", rows=12, goal=Goal(divergence=first.measured / 2), replace=True)
    assert done.front is not None
    assert done.front.measured <= first.measured / 2
    assert done.front.bits > first.bits
    assert [row.adapter for row in done.quality] == [None, "small", "dora"]


def test_what_a_matrix_is_worth_in_either_graph(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """Against graphs written with that matrix changed, run one after the other by hand."""
    own = Path(shutil.copytree(bundles("T5"), tmp_path / "own"))
    bundle = read_bundle(own)
    slots, entry = bundle.manifest.slots, bundle.manifest.variants["fp32"]
    runs = crossed_runs(bundle, {}, rows=8)
    files = {"encoder/": own / entry.file, "decoder/": own / str(entry.decoder_file)}
    stages = []
    for (label, file), field in zip(files.items(), ("file", "decoder_file"), strict=True):
        names = [m.name for m in matrices(ir.load(file).graph, slots, width=BLOCK)]
        fitted = fit(file, slots, dict.fromkeys(names, Form()), batches=runs.feeds_of(field), open_session=open_session)
        stages.append(Stage(file, {name: each.rounded for name, each in fitted.items()}, label))
    found = sensitivity_of(stages, slots, runs.probed(), open_session)
    assert found.together > max(found.each.values())
    for place, stage in enumerate(stages):
        for name in list(stage.rounded)[:2]:
            changed = [each.source for each in stages]
            changed[place] = tmp_path / f"changed{place}.onnx"
            alone = {name: stage.rounded[name]}
            _write_changed(stage.source, changed[place], slots, alone)
            apart = divergence_between(list(files.values()), changed, runs.probed(), open_session)
            assert apart > 0
            assert found.each[f"{stage.label}{name}"] == pytest.approx(apart, rel=0.02, abs=1e-7)


def _write_changed(source: Path, target: Path, slots: SlotTable, rounded: dict[str, Rounded]) -> None:
    """``source`` with the rounded numbers of some matrices in float32, and their biases."""
    model = ir.load(source)
    ir.external_data.load_to_model(model)
    for matrix in [m for m in matrices(model.graph, slots, width=BLOCK) if m.name in rounded]:
        made = rounded[matrix.name]
        value = made.weight() if matrix.transposed else np.ascontiguousarray(made.weight().T)
        matrix.value.const_value = ir.tensor(value, name=matrix.name)
        for node in matrix.linear:
            output = node.outputs[0]
            bias = ir.Value(name=f"{node.name}_b", const_value=ir.tensor(made.bias, name=f"{node.name}_b"))
            model.graph.register_initializer(bias)
            users = list(output.uses())
            add = ir.node("Add", [output, bias])
            model.graph.insert_after(node, [add])
            for user, index in users:
                user.replace_input_with(index, add.outputs[0])
            if output.is_graph_output():
                model.graph.outputs[list(model.graph.outputs).index(output)] = add.outputs[0]
                add.outputs[0].name, output.name = output.name, f"{output.name}_before"
                add.outputs[0].type, add.outputs[0].shape = output.type, output.shape
    ir.save(model, target)


def test_what_does_not_fit(bundles: Callable[[str], Path]) -> None:
    t5, bart = runtime.open(bundles("T5")), runtime.open(bundles("Bart"))
    with pytest.raises(InputError, match="the text is empty"):
        t5.generate("")
    with pytest.raises(InputError, match="plain texts"):
        t5.generate([{"role": "user", "content": "good"}])
    with pytest.raises(InputError, match="plain texts"):
        t5.generate("good", system="be brief")
    with pytest.raises(InputError, match=r"has \d+ tokens; this model reads at most 32"):
        bart.generate("good " * 60)
    with pytest.raises(InputError, match="at most 31 new tokens"):
        bart.generate("good", max_new_tokens=40)
    with pytest.raises(InputError, match="conversation"):
        t5.conversation()


def test_threads_with_views_of_their_own(bundles: Callable[[str], Path]) -> None:
    """Each answer is the single-threaded one, while another thread swaps the adapter in use."""
    with runtime.open(bundles("T5"), threads=1) as model:
        requests = generations(
            ["a good film", "the book was bad"], ("small", "dora"), {"max_new_tokens": 4}, blend=False
        )
        hammer(model, requests, ["small", "dora", None], 100)


def test_a_stream_ends_with_the_adapter_and_the_model_it_began_with(bundles: Callable[[str], Path]) -> None:
    model = runtime.open(bundles("T5"), threads=1).use("small")
    expected = model.generate("a good film", max_new_tokens=12).text
    stream = model.stream("a good film", max_new_tokens=12)
    first = next(stream)
    model.use("dora")
    model.close()
    assert first + "".join(stream) == expected
    with pytest.raises(InputError, match="was closed"):
        model.generate("a good film")
