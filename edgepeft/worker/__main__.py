"""``python -m edgepeft.worker.__main__``: one fresh process that reads a :class:`Job` and prints a :class:`WorkerResult`.

Standard output carries that one JSON line and nothing else; an edgepeft error is one line on standard error and exit
code 2.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from ..errors import DeviceError, EdgepeftError, NonFiniteError
from ..targets import Shape
from .host import fingerprint, held_mb, peak_rss_mb, rss_mb
from .inference import Arrays, inference, make_inputs
from .instructions import Counter
from .job import (
    Case,
    CaseCount,
    CaseSamples,
    Generated,
    Host,
    Job,
    Message,
    Prompts,
    RowLogits,
    Rows,
    Sampling,
    SwapSamples,
    WorkerResult,
)

if TYPE_CHECKING:
    from ..runtime import Generation, Runtime

#: Swaps followed by an inference, which is the costly part; the rest of ``Job.swaps`` are timed without.
_SWAPS_WITH_INFERENCE = 20


def _ms(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return (perf_counter() - start) * 1e3


def _steady(run: Callable[[], object], sampling: Sampling) -> tuple[float, ...]:
    """Milliseconds of each call after warm-up (at least two calls: the first ones allocate)."""
    begin = perf_counter()
    for count in itertools.count(1):
        run()
        if count >= 2 and perf_counter() - begin >= sampling.warmup_s:
            break
    samples: list[float] = []
    begin = perf_counter()
    while len(samples) < sampling.max_iterations:
        samples.append(_ms(run))
        if len(samples) >= sampling.min_iterations and perf_counter() - begin >= sampling.measure_s:
            break
    return tuple(samples)


def _swap(runtime: Runtime, run: Callable[[], object], swaps: int, cold_ms: tuple[float, ...]) -> SwapSamples | None:
    names: list[str | None] = [*runtime.adapters]
    if not names:
        return None
    if len(names) == 1:
        names.append(None)
    turn = itertools.cycle(names)

    def swap() -> None:
        runtime.use(next(turn))

    def swap_and_run() -> None:
        swap()
        run()

    # First, so that every allocation an inference makes is behind us when the resident set is read.
    with_inference = tuple(_ms(swap_and_run) for _ in range(_SWAPS_WITH_INFERENCE))
    before = rss_mb()
    use: list[float] = []
    for count in range(1, swaps + 1):
        use.append(_ms(swap))
        if count % 50 == 0:
            run()
    return SwapSamples(
        cold_ms=cold_ms,
        use_ms=tuple(use),
        first_inference_ms=with_inference,
        rss_before_mb=before,
        rss_after_mb=rss_mb(),
    )


def measure(job: Job) -> WorkerResult:
    """Do ``job`` in this process. Raises :class:`EdgepeftError` for a bundle, adapter or shape that cannot be run."""
    rss_start = rss_mb()
    start = perf_counter()
    import onnxruntime

    from ..runtime import open as open_bundle
    from ..runtime.finite import count_not_finite

    import_ms = (perf_counter() - start) * 1e3
    start = perf_counter()
    runtime = open_bundle(job.bundle, variant=job.variant, threads=job.threads, device=job.device)
    load_ms = (perf_counter() - start) * 1e3
    rss_loaded, held, load_peak = rss_mb(), held_mb(), peak_rss_mb()
    wanted = runtime.adapters if job.swaps else {case.adapter for case in job.cases if case.adapter}
    cold = tuple(_ms(lambda name=name: runtime.use(name)) for name in wanted)  # type: ignore[misc]

    def measure_case(case: Case) -> CaseSamples:
        runtime.use(case.adapter)
        run = inference(runtime, case, job.sampling.seed)
        outputs = run()
        broken = count_not_finite(outputs if isinstance(outputs, dict) else {"logits": outputs})
        return CaseSamples(case=case, samples_ms=_steady(run, job.sampling), not_finite=broken)

    def count_case(counter: Counter, case: Case) -> CaseCount:
        runtime.use(case.adapter)
        return CaseCount(case=case, instructions=counter.count(inference(runtime, case, job.sampling.seed)))

    rows, generated, restored = _answer(runtime, job)
    counter = Counter() if job.counted else None
    counts = tuple(count_case(counter, case) for case in job.counted) if counter is not None else ()
    cases = tuple(map(measure_case, job.cases))
    swap = None
    if job.swaps:
        usual = Shape(1, 8 if runtime.manifest.task == "text-generation" else 32)
        smallest = min((case.shape for case in job.cases), key=lambda s: s.batch * s.sequence, default=usual)
        case = Case(adapter=None, batch=smallest.batch, sequence=smallest.sequence)
        # The call is made anew each time: it belongs to the adapter in use.
        swap = _swap(runtime, lambda: inference(runtime, case, job.sampling.seed)(), job.swaps, cold)
    return WorkerResult(
        host=_host(onnxruntime.__version__, job),
        import_ms=import_ms,
        load_ms=load_ms,
        rss_start_mb=rss_start,
        rss_loaded_mb=rss_loaded,
        peak_rss_mb=peak_rss_mb(),
        anonymous_mb=None if held is None else held[0],
        mapped_mb=None if held is None else held[1],
        load_peak_mb=load_peak,
        cases=cases,
        counts=counts,
        swap=swap,
        rows=rows,
        generated=generated,
        base_restored=restored,
        notes=_notes(runtime),
    )


def _host(version: str, job: Job) -> Host:
    """This host; with the kernels whichever of its bundles they fit, so that those of one check are of one host."""
    from ..runtime.kernels import library_for

    kernels = library_for("auto") if job.device == "cpu" else None
    return fingerprint(version, job.threads).model_copy(update={"kernels": str(kernels or "")})


def _notes(runtime: Runtime) -> tuple[str, ...]:
    """Where a GPU ran it, and what it left to the CPU."""
    placement = runtime.placement
    if placement is None:
        return ()
    if not placement.gpu:
        raise DeviceError(f"no node of {runtime.bundle.path} runs on WebGPU: ONNX Runtime put all of them on the CPU")
    from ..runtime.generation.decoder import CHUNK

    at_once = runtime.generator.tokens_at_once if runtime.manifest.task == "text-generation" else None
    small = at_once is not None and at_once < CHUNK
    read = (
        (f"prompts are read {at_once} tokens at a time: longer pieces gave other logits on this GPU",) if small else ()
    )
    return (str(placement), *read)


#: Run with the base and every adapter, before and after rows and prompts: of different lengths, so that one is padded.
_PROBES = ("good", "not what I had hoped for, though it arrived on time")


def _answer(runtime: Runtime, job: Job) -> tuple[tuple[RowLogits, ...], tuple[Generated, ...], bool | None]:
    """The job's rows and prompts, and whether base and adapters came back bit for bit (``None``: not asked)."""

    def probe(names: Iterable[str | None]) -> dict[str | None, Arrays]:
        outputs = {}
        for name in names:
            runtime.use(name)
            outputs[name] = _outputs(runtime, _PROBES, job.sampling.seed)
        return outputs

    # The adapters too: a base whose head is not trained answers zeros, whatever adapter is left in its layers.
    every: tuple[str | None, ...] = (None, *runtime.adapters)
    before = probe(every) if job.restore else {}
    rows = tuple(_classify(runtime, rows) for rows in job.rows)
    generated = tuple(_generate(runtime, prompts) for prompts in job.prompts)
    if not job.restore:
        return rows, generated, None
    after = probe(reversed(every))
    # A NaN is the same as a NaN here: that an adapter gives them is said by rows and prompts.
    same = all(
        np.array_equal(before[name][key], after[name][key], equal_nan=True) for name in every for key in before[name]
    )
    return rows, generated, same


def _classify(runtime: Runtime, rows: Rows) -> RowLogits:
    texts = rows.texts if rows.pairs is None else tuple(zip(rows.texts, rows.pairs, strict=True))
    logits = runtime.use(rows.adapter).logits(texts, batch_size=rows.batch)
    return RowLogits(adapter=rows.adapter, logits=tuple(tuple(map(float, row)) for row in logits))


def _generate(runtime: Runtime, prompts: Prompts) -> Generated:
    runtime.use(prompts.adapter)
    found: list[Generation | None] = []
    broken = ""
    for text in prompts.texts:
        try:
            found.append(_answer_prompt(runtime, prompts, text))
        except NonFiniteError as error:  # a finding, which a gate reports
            found.append(None)
            broken = str(error)
    return Generated(
        adapter=prompts.adapter,
        tokens=tuple(() if each is None else tuple(each.tokens) for each in found),
        texts=tuple("" if each is None else each.text for each in found),
        prefill_ms=tuple(0.0 if each is None else each.prefill_ms for each in found),
        tokens_per_s=tuple(None if each is None else each.tokens_per_second for each in found),
        not_finite=broken,
    )


def _answer_prompt(runtime: Runtime, prompts: Prompts, text: str | tuple[Message, ...]) -> Generation:
    return runtime.generate(
        text,
        max_new_tokens=prompts.max_new_tokens,
        temperature=0,
        repetition_penalty=1.0,
        chat=prompts.chat if isinstance(text, str) else None,
    )


def _outputs(runtime: Runtime, texts: Sequence[str], seed: int) -> Arrays:
    """What the adapter in use gives for texts; for as many rows of random token ids where there is no tokenizer."""
    if runtime.manifest.hears:
        return {"logits": runtime.decoder(len(texts), 1).prefill([[0]] * len(texts)).copy()}
    if runtime.manifest.writes:
        prompts = [runtime.generator.tokens.encode(text, special=True) for text in texts]
        decoder = runtime.decoder(len(texts), max(map(len, prompts)))
        return {"logits": decoder.prefill(prompts).copy()}
    if "tokenizer.json" in runtime.manifest.files:
        return runtime.forward(runtime.encode(texts))
    return runtime.forward(make_inputs(runtime, Shape(len(texts), 8), seed, vocabulary=2))


def main() -> int:
    """Read a job, print its result; 0, or 2 with one line on standard error."""
    try:
        result = measure(Job.model_validate_json(sys.stdin.read()))
    except ValidationError as error:
        sys.stderr.write(f"InputError: not a job: {error}\n")
        return 2
    except EdgepeftError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    sys.stdout.write(result.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
