"""Text generation on a device: greedy tokens there, held against what a native run and PEFT would choose after the same tokens.

Near-ties may fall either way where kernels round differently, and after one two texts have nothing in common. So a reference
is given the device's own tokens, one after the other, and each is judged: it must be the reference's choice, or one whose
logit is as large within a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ...bench import Generated, Job, Prompts, WorkerResult
from ...bundle import Bundle
from ...data import PromptRows
from ...errors import DeviceError
from ...report.gate import Gate, Report, Table
from ...report.partial import Keep, keep_nothing
from ...runtime import View
from ...runtime import open as open_runtime
from ...runtime.generation import PromptEncoder
from ...targets import Target
from ..executors.protocol import Executor
from .device_report import device_report, judged_coarsely
from .reference import Peft, check_data

#: How far another token's logit may be ahead of the one the device took, relative to the largest logit there. Each of the two
#: may be off by the parity tolerance of 1e-4.
LEAD = 2e-4
#: The same for a quantized variant against a native run of it: kernels of another machine quantize activations otherwise.
QUANTIZED_LEAD = 0.05
#: Greedy tokens after each prompt.
NEW_TOKENS = 32
#: Prompts an adapter, natively and under emulation, where a token takes a second.
_PROMPTS, _EMULATED_PROMPTS = 8, 2

#: Gone on from where no data is given.
PROMPTS = (
    "What is the capital of France?",
    "My laptop does not start. What should I do?",
    "Write a short poem about the sea.",
    "Explain in one sentence why the sky is blue.",
)

#: Logits ``[tokens, vocabulary]`` from which each of ``tokens`` would be chosen, after a prompt's tokens.
Logits = Callable[[Sequence[int], Sequence[int]], np.ndarray]

#: Prompts and the answers to them, as tokens.
Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]

#: A variant and an adapter.
_Key = tuple[str, str | None]


@dataclass(frozen=True)
class Followed:
    """The device's tokens beside a reference's choices after the same tokens."""

    #: Tokens that are the reference's own choice.
    same: int
    #: By how much the reference's choice is ahead of the device's, at most, relative to the largest logit there.
    lead: float
    #: Prompt and token (from 1) where the device first took another; ``None`` where it never did.
    first: tuple[int, int] | None


@dataclass(frozen=True)
class DeviceTokens:
    """One adapter and variant on the device, and each reference on its tokens."""

    adapter: str | None
    variant: str
    prompts: int
    tokens: int
    #: Whether every answer is as long as was asked for, or ends with a token that ends a text.
    complete: bool
    native: Followed
    #: PEFT fp32, where a checkpoint is at hand.
    peft: Followed | None
    tokens_per_s: float | None
    texts: tuple[str, ...]
    #: Why an answer has no tokens, where the logits there were not finite numbers; else empty.
    not_finite: str = ""


def validate_tokens(
    bundle: Bundle,
    target: Target,
    executor: Executor,
    variants: Sequence[str],
    data: Mapping[str, PromptRows],
    rows: int | None,
    new_tokens: int,
    peft: Peft | None,
    progress: Callable[[str], None],
    keep: Keep = keep_nothing,
) -> Report:
    """Generate on ``executor`` with the base and every adapter; see :func:`edgepeft.devices.validate_on`."""
    if rows is None:
        rows = _EMULATED_PROMPTS if executor.emulated else _PROMPTS
    prompts = _prompts(bundle, data, rows, new_tokens)
    ids = [
        _encode(bundle, PromptEncoder(bundle, bundle.text_of(each.adapter)), each) for each in prompts
    ]  # what does not fit the model is said before the device is asked
    results: dict[str, WorkerResult] = {}
    again: list[Gate] = []
    judged: dict[_Key, DeviceTokens] = {}
    pairs: dict[_Key, Pairs] = {}

    def so_far() -> Report:
        table = [*judged.values()]
        gates = [gate for each in table for gate in _gates(each, judged_coarsely(bundle, each.variant, executor))]
        data = {"tokens": [*map(asdict, table)]}
        return device_report(bundle, target, executor, results, [*again, *gates], [_table(table, executor)], data)

    keep(lambda: so_far() if results else None)
    for variant in variants:
        # The base once more at the end: its tokens come through the cache, which the probes of `restore` do not.
        first = prompts[0].model_copy(update={"texts": prompts[0].texts[:1]})
        job = Job(
            bundle=str(bundle.path),
            variant=variant,
            threads=target.runtime.threads,
            prompts=(*prompts, first) if bundle.manifest.adapters else prompts,
            restore=bool(bundle.manifest.adapters),
        )
        count = sum(len(each.texts) for each in prompts)
        progress(f"{variant}: generating {new_tokens} tokens after each of {count} prompts on {executor.name}")
        results[variant] = executor.run(job)
        generated = _checked(results[variant], job, executor)
        if bundle.manifest.adapters:
            same = generated[-1].tokens[0] == generated[0].tokens[0]
            again.append(Gate.holds(f"base tokens again after the adapters {variant}", same))
        progress(f"{variant}: the same tokens natively")
        found = _natively(bundle, variant, prompts, ids, generated[: len(prompts)])
        for asked, (each, tokens) in zip(prompts, found, strict=True):
            judged[variant, asked.adapter], pairs[variant, asked.adapter] = each, tokens
    for key, followed in _peft_follows(bundle, pairs, peft, progress) if peft else ():
        judged[key] = replace(judged[key], peft=followed)
    return so_far()


def _prompts(bundle: Bundle, data: Mapping[str, PromptRows], rows: int, new_tokens: int) -> tuple[Prompts, ...]:
    merged = bundle.manifest.merged
    names: tuple[str | None, ...] = (None, *bundle.manifest.adapters)
    check_data(bundle, names, data, rows)
    found = []
    for name in names:
        each = (data.get(name or merged or "*", data.get("*")) or PromptRows(PROMPTS)).spread(rows)
        found.append(Prompts(adapter=name, texts=tuple(each.prompts), max_new_tokens=new_tokens, chat=each.chat))
    return tuple(found)


def _encode(bundle: Bundle, encoder: PromptEncoder, prompts: Prompts) -> list[list[int]]:
    """The tokens that every executor makes of the prompts. Raises :class:`InputError` where one leaves no room for an answer."""
    before = bundle.manifest.adapters[prompts.adapter].prefix_length if prompts.adapter else 0
    found = []
    for text in prompts.texts:
        found.append(encoder.encode(text, chat=prompts.chat if isinstance(text, str) else None, before=before))
        encoder.new_tokens(len(found[-1]), prompts.max_new_tokens, before)
    return found


def _checked(result: WorkerResult, job: Job, executor: Executor) -> tuple[Generated, ...]:
    """The device's answers, if they are to what was asked."""
    asked = [(prompts.adapter, len(prompts.texts)) for prompts in job.prompts]
    came = [(each.adapter, len(each.tokens)) for each in result.generated]
    if asked != came or any(not tokens and not each.not_finite for each in result.generated for tokens in each.tokens):
        raise DeviceError(f"{executor.name} answered with {came} texts of at least a token each, asked for {asked}")
    return result.generated


def follow(pairs: Pairs, logits: Logits) -> Followed:
    """How a reference would choose at each token of ``(prompt, answer)`` pairs of token ids."""
    same, lead, first = 0, 0.0, None
    for number, (prompt, answer) in enumerate(pairs, 1):
        if not answer:  # there is nothing to follow: the device's logits were not finite, which is a gate of its own
            continue
        scores = logits(prompt, answer).astype(np.float64)
        taken = scores[np.arange(len(answer)), list(answer)]
        best = scores.max(axis=1)
        leads = (best - taken) / np.maximum(1.0, np.abs(scores).max(axis=1))
        # A token that is NaN, or outside the vocabulary, is no choice of anybody.
        lead = max(lead, float(np.nan_to_num(leads, nan=np.inf).max()))
        other = np.flatnonzero(~(taken == best))
        same += len(answer) - len(other)
        if len(other) and first is None:
            first = (number, int(other[0]) + 1)
    return Followed(same, lead, first)


def _natively(
    bundle: Bundle,
    variant: str,
    prompts: Sequence[Prompts],
    ids: Sequence[list[list[int]]],
    generated: Sequence[Generated],
) -> Iterator[tuple[DeviceTokens, Pairs]]:
    """Each adapter's answers of one variant beside a native run, and its prompts and answers as tokens."""
    # The graph that the device ran, without this machine's kernels, which round quantized matrices otherwise.
    runtime = open_runtime(bundle.path, variant=variant, threads=1, kernels="off")
    for asked, encoded, each in zip(prompts, ids, generated, strict=True):
        view = runtime.adapter(asked.adapter)
        ends = view.end_tokens
        pairs = list(zip(encoded, each.tokens, strict=True))
        speeds = [speed for speed in each.tokens_per_s if speed is not None]
        judged = DeviceTokens(
            adapter=each.adapter or bundle.manifest.merged,
            variant=variant,
            prompts=len(each.tokens),
            tokens=sum(map(len, each.tokens)),
            complete=all(
                len(tokens) == asked.max_new_tokens or (tokens and tokens[-1] in ends) for tokens in each.tokens
            ),
            native=follow(pairs, lambda prompt, answer, view=view: _native(view, prompt, answer)),  # type: ignore[misc] # bound now
            peft=None,
            tokens_per_s=median(speeds) if speeds else None,
            texts=each.texts,
            not_finite=each.not_finite,
        )
        yield judged, pairs


def _native(view: View, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """What the runtime here computes with an adapter, token by token through the cache, as the device did."""
    decoder = view.decoder(1, len(prompt) + len(answer))
    found = [decoder.prefill([prompt])[0].copy()]
    found += [decoder.step([token])[0].copy() for token in answer[:-1]]
    return np.stack(found)


def _peft_follows(
    bundle: Bundle,
    pairs: Mapping[_Key, Pairs],
    peft: Peft,
    progress: Callable[[str], None],
) -> Iterator[tuple[_Key, Followed]]:
    """PEFT in fp32 on the device's tokens, the base's model among them; none where no checkpoint is at hand."""
    if not peft.sources and not Path(peft.base).is_dir():
        return
    from ...base.load import load_model

    task, merged = bundle.manifest.task, bundle.manifest.merged
    module = load_model(peft.base, task=task).model
    for adapter in dict.fromkeys(adapter for _, adapter in pairs):
        name = adapter or merged
        if name is not None and name not in peft.sources:
            continue
        progress(f"the same tokens under {'PyTorch' if name is None else f'PEFT with {name}'}")
        with _reference(peft, name, task, module) as reference:
            for key, each in pairs.items():
                if key[1] == adapter:
                    yield key, follow(each, lambda prompt, answer, m=reference: _torch(m, prompt, answer))  # type: ignore[misc] # bound now


@contextmanager
def _reference(peft: Peft, name: str | None, task: str, module: object) -> Iterator[object]:
    if name is None:
        yield module
        return
    from ...validate.reference import peft_reference

    with peft_reference(peft.base, peft.sources[name], task=task, num_labels=None, module=module) as reference:
        yield reference


def _torch(module: object, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """All at once, without a cache."""
    from ...base.parity import reference_outputs

    ids = np.array([[*prompt, *answer[:-1]]], np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits: np.ndarray = reference_outputs(module, inputs, ["logits"])["logits"][0]
    return logits[-len(answer) :]


def _gates(each: DeviceTokens, coarse: bool) -> list[Gate]:
    key = f"{each.adapter or '(base)'} {each.variant}"
    gates = [_gate(f"tokens as native {key}", each, each.native, QUANTIZED_LEAD if coarse else LEAD)]
    if each.peft is not None and not coarse:
        gates.append(_gate(f"tokens as PEFT {key}", each, each.peft, LEAD))
    short = "an answer is shorter than was asked for and does not end with a token that ends texts"
    detail = each.not_finite or ("" if each.complete else short)
    return [*gates, Gate.holds(f"answers complete {key}", each.complete, detail)]


def _gate(name: str, each: DeviceTokens, found: Followed, limit: float) -> Gate:
    detail = f"{found.same} of {each.tokens} tokens are its own choice"
    if found.first is not None:
        detail += f"; the first other one is token {found.first[1]} of prompt {found.first[0]}"
    return Gate.at_most(name, found.lead, limit, "of the largest logit", detail, broken=each.not_finite)


def _table(rows: Sequence[DeviceTokens], executor: Executor) -> Table:
    speed = () if executor.emulated else ("tokens/s",)
    return Table(
        "Greedy tokens on the device",
        ("adapter", "variant", "prompts", "tokens", "chosen natively", "largest lead", "chosen by PEFT",
         "largest lead of PEFT's", *speed),
        tuple(
            (
                r.adapter or "(base)", r.variant, r.prompts, r.tokens, r.native.same, r.native.lead,
                None if r.peft is None else r.peft.same, None if r.peft is None else r.peft.lead,
                *((r.tokens_per_s,) if speed else ()),
            )
            for r in rows
        ),
    )  # fmt: skip
