"""How the C++ runner of ``targets/cpp`` is spoken to: a job as words on its standard input, lines back.

Tokenizers and chat templates stay here: the runner gets token ids and gives logits or token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...bench import Generated, Host, Job, Prompts, RowLogits, Rows, SwapSamples, WorkerResult
from ...bundle import Bundle
from ...errors import DeviceError, InputError
from ...runtime.generation import PromptEncoder
from ...runtime.per_text import PerText
from ...runtime.text import TextEncoder

#: A line of the answer, as words.
Line = list[str]


def write_job(job: Job, bundle: Bundle, files: Mapping[str, str]) -> str:
    """``job`` in the runner's words; ``files`` says where each file of the bundle lies for the runner.

    Texts are tokenized here, in batches as the job says. Raises :class:`InputError` for what the runner cannot do.
    """
    if job.cases or job.counted:
        raise InputError("the C++ runner measures no latency: leave cases out")
    if spaced := [path for path in files.values() if any(c.isspace() for c in path)]:
        raise InputError(f"the C++ runner takes paths without spaces, found {spaced[0]!r}")
    manifest = bundle.manifest
    asked: tuple[Rows | Prompts, ...] = (*job.rows, *job.prompts)
    for each in asked:
        if each.adapter not in (None, *manifest.adapters):
            raise InputError(
                f"no adapter {each.adapter!r} in the bundle; it has: {', '.join(manifest.adapters) or 'none'}"
            )
    words = [f"edgepeft-job 1 threads {job.threads} restore {int(job.restore)} swaps {job.swaps}"]
    words.append(f"graph {files[manifest.variants[job.variant].file]}")
    for name, entry in manifest.on(job.variant).adapters.items():
        # States before a sequence fill no slots, and other forms than float32 no inputs: the adapter's other file gives both.
        states = entry.prefix_length > 0 or entry.form != "fp32"
        words.append(f"states {name} {files[entry.onnx]}" if states else f"adapter {name} {files[entry.onnx_adapter]}")
    if job.rows:
        encoders = PerText(lambda own: TextEncoder(bundle, own))
        words += (line for rows in job.rows for line in _batches(rows, encoders.get(bundle.text_of(rows.adapter))))
    if job.prompts:
        prompters = PerText(lambda own: PromptEncoder(bundle, own))
        words += (
            line for each in job.prompts for line in _prompts(each, prompters.get(bundle.text_of(each.adapter)), bundle)
        )
    return "\n".join(words) + "\n"


def _batches(rows: Rows, encoder: TextEncoder) -> Iterator[str]:
    texts = rows.texts if rows.pairs is None else tuple(zip(rows.texts, rows.pairs, strict=True))
    for start in range(0, len(texts), rows.batch):
        arrays = encoder.encode(texts[start : start + rows.batch])
        shape = next(iter(arrays.values())).shape
        yield f"batch {rows.adapter or '-'} {shape[0]} {shape[1]} {len(arrays)}"
        yield from (f"{name} {' '.join(map(str, array.ravel()))}" for name, array in arrays.items())


def _prompts(prompts: Prompts, encoder: PromptEncoder, bundle: Bundle) -> Iterator[str]:
    before = bundle.manifest.adapters[prompts.adapter].prefix_length if prompts.adapter else 0
    stops = sorted(encoder.defaults.eos)
    for text in prompts.texts:
        ids = encoder.encode(text, chat=prompts.chat if isinstance(text, str) else None, before=before)
        new = encoder.new_tokens(len(ids), prompts.max_new_tokens, before)
        switch = bundle.manifest.rope_switch
        if switch is not None and before + len(ids) + new > switch:
            raise InputError(
                f"{bundle.path}: beyond {switch} tokens this model's rotary frequencies are others from the first token on, and "
                f"the C++ runner does not read a sequence anew; {len(ids)} tokens and {new} new ones were asked for"
            )
        numbers = (new, len(stops), *stops, len(ids), *ids)
        yield f"prompt {prompts.adapter or '-'} {' '.join(map(str, numbers))}"


def read_answer(answer: str, job: Job, bundle: Bundle, host: Host, where: str) -> WorkerResult:
    """The runner's lines as a result; :class:`DeviceError` where they are not what was asked for."""
    lines = [line.split() for line in answer.splitlines()]
    if not lines or lines[-1] != ["end"]:
        raise DeviceError(f"{where}: the runner's answer is cut off: {answer[-200:]!r}")
    said = {line[0]: line[1:] for line in lines}
    batches = [line for line in lines if line[0] == "logits"]
    texts = [line for line in lines if line[0] == "tokens"]
    swaps = tuple(map(float, said.get("swap_ms", ())))
    encoders = PerText(lambda own: PromptEncoder(bundle, own))
    return WorkerResult(
        host=host.model_copy(update={"onnxruntime": said["onnxruntime"][0]}),
        import_ms=0.0,
        load_ms=float(said["load_ms"][0]),
        rss_start_mb=None,
        rss_loaded_mb=None,
        peak_rss_mb=float(said["peak_rss_mb"][0]) or None,
        cases=(),
        swap=SwapSamples(cold_ms=(), use_ms=swaps, first_inference_ms=(), rss_before_mb=None, rss_after_mb=None)
        if swaps
        else None,
        rows=tuple(_rows(rows, batches, where) for rows in job.rows),
        generated=tuple(
            _generated(each, texts, encoders.get(bundle.text_of(each.adapter)), where) for each in job.prompts
        ),
        base_restored=said["base_restored"] == ["1"] if "base_restored" in said else None,
    )


def _rows(rows: Rows, batches: list[Line], where: str) -> RowLogits:
    logits: list[tuple[float, ...]] = []
    while len(logits) < len(rows.texts):
        if not batches or batches[0][1] != (rows.adapter or "-"):
            raise DeviceError(f"{where}: {len(logits)} rows came for {rows.adapter}, {len(rows.texts)} were asked for")
        _, _, count, labels, *values = batches.pop(0)
        # The runner prints nine digits, which name a float32 exactly; it is that float32 that is meant.
        array = np.array(values, dtype=np.float32).reshape(int(count), int(labels))
        logits += [tuple(map(float, row)) for row in array]
    return RowLogits(adapter=rows.adapter, logits=tuple(logits))


def _generated(prompts: Prompts, lines: list[Line], encoder: PromptEncoder, where: str) -> Generated:
    mine = lines[: len(prompts.texts)]
    del lines[: len(prompts.texts)]
    if [line[1] for line in mine] != [prompts.adapter or "-"] * len(prompts.texts):
        raise DeviceError(f"{where}: {len(mine)} texts came for {prompts.adapter}, {len(prompts.texts)} were asked for")
    tokens = tuple(tuple(map(int, line[4:])) for line in mine)
    return Generated(
        adapter=prompts.adapter,
        tokens=tokens,
        texts=tuple(encoder.tokens.decode(each) for each in tokens),
        prefill_ms=tuple(float(line[2]) for line in mine),
        tokens_per_s=tuple(float(line[3]) or None for line in mine),
        not_finite="" if all(tokens) else "the model's logits are not finite numbers",
    )
