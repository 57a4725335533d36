"""Parity of a bundle whose base is too large to be held by PyTorch and ONNX Runtime at once.

PyTorch's side is computed block by block, for the base and all adapters together, with the numbers that the variant is to hold:
the checkpoint's, rounded as the recipe rounds. ONNX Runtime's side is the written file, mapped, with kernels that keep
activations in float32. So the file is compared, and a weight at a wrong place shows as in any other comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..adapters.bundle_graph import load_graph
from ..adapters.checkpoint import Checkpoint
from ..adapters.layout import conv1d_weights
from ..adapters.read import method_of
from ..adapters.through_peft.load import ask_for_task, wrap
from ..base.load import quiet
from ..base.memory import give_back
from ..base.parity_causal import CausalBatch, Step, causal_batches, from_rows, row_calls
from ..base.parity_positions import (
    Place,
    in_place,
    place_difference,
    place_noise,
    places,
    reference_place,
    run_place,
)
from ..base.rounding import Noise, judge, sums_reversed
from ..base.streamed.checkpoint import widen
from ..base.streamed.load import LoadedInPlace
from ..base.streamed.lockstep import Lockstep
from ..base.streamed.numbers import StoredNumbers
from ..bundle import Bundle, hash_file
from ..errors import InputError, ParityError
from ..quantize.exact import compute_exactly
from ..quantize.recipes import WHOLE
from ..runtime import Runtime
from ..runtime.engine import Engine
from ..runtime.generation.signature import read_signature
from .parity import AdapterProbe, adapter_probe, base_restored, check_mixed, judge_adapter
from .probe import CausalProbe, Found, Probe, bundle_probe
from .reference import called
from .result import AdapterParity
from .segmented import EXACT, SegmentedEngine, SegmentedSession, together_of

#: What a linear map ``[out, in]`` becomes, by parameter.
Rounding = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why an adapter cannot be compared block by block, in words; ``None`` where it can.

    PEFT's model of it must leave the base's parameters alone: they are not there. DoRA's gains are made of the checkpoint's own
    weights, where PEFT over rounded ones would make others.
    """
    config = checkpoint.config
    alone = method_of(checkpoint).leaves_base_alone
    if alone is None or not alone(config):
        return f"PEFT's {checkpoint.peft_type} with its settings may change the base's own numbers"
    return "DoRA's gains are made of the base's own numbers" if config.get("use_dora") else None


@dataclass(frozen=True)
class StreamedBase:
    """The base of a streamed comparison: its model without numbers, and where those are."""

    given: LoadedInPlace
    source: str

    def outputs(
        self,
        checkpoints: Mapping[str, Checkpoint],
        probes: Mapping[str | None, Probe],
        rounding: Rounding,
        far: Sequence[Place] = (),
        *,
        backwards: bool = False,
    ) -> tuple[dict[str | None, Found], dict[Place, np.ndarray]]:
        """What PyTorch computes, all in one pass over the numbers: for the base (``None``) and each adapter on its probe, and for
        the base at places ``far`` into its context, where it can be asked there (``backwards``: as :func:`reference_place`).
        """
        model = self.given.loaded.model
        numbers = StoredNumbers(self.given.arrays, widen, rounding, frozenset(conv1d_weights(model)))
        steps = Lockstep(model, numbers)
        works: list[Callable[[], np.ndarray | None]] = []
        batches = {name: _batches(probe) for name, probe in probes.items()}
        for name in probes:
            module = steps.copy()
            if name is not None:
                module = _adapted(module, checkpoints[name])
            for batch in batches[name]:
                works += row_calls(module, batch)
        distant = steps.copy() if far else None
        for place in far:
            shapes = next(probe.shapes for probe in probes.values() if isinstance(probe, CausalProbe))
            works.append(partial(reference_place, distant, shapes, place, backwards=backwards))
        given = steps.run(works)
        results = (each for each in given if each is not None)
        found: dict[str | None, Found] = {}
        for name in probes:
            pairs = [from_rows(batch, [next(results) for _ in batch.ids]) for batch in batches[name]]
            found[name] = [{"prompt": prompt, "following": following} for prompt, following in pairs]
        logits = zip(far, given[len(given) - len(far) :], strict=True)
        return found, {place: each for place, each in logits if each is not None}


def _thorough(bundle: Bundle, plain: Probe) -> CausalProbe:
    """What a base is run on when it is captured: what an adapter is, and long prompts in two pieces, through the cache."""
    if not isinstance(plain, CausalProbe):
        raise InputError("only language models are compared block by block")
    config = bundle.read_json("config.json")
    batches = causal_batches(
        vocab=int(config["vocab_size"]),
        pad_id=int(config.get("pad_token_id") or 0),
        max_length=bundle.manifest.max_length,
        window=config.get("sliding_window"),
        config=config,
        parameters=bundle.manifest.base.parameters,
        pieces=True,
    )
    return replace(plain, batches=batches)


def _batches(probe: Probe) -> list[CausalBatch]:
    if not isinstance(probe, CausalProbe):
        raise InputError("only language models are compared block by block")
    return probe.batches


def _adapted(module: Any, checkpoint: Checkpoint) -> Any:
    with quiet():
        wrapped = wrap(module, checkpoint)
    ask_for_task(wrapped, checkpoint.task)
    return called(wrapped.eval(), checkpoint)


#: How a graph in fp32 is opened without copies of its weights: those that kernels would be given in their own layout, and that of a
#: head that is tied to the embedding, turned beforehand (ONNX Runtime's MatMul reads it turned just as fast).
MAPPED = {"session.disable_prepacking": "1", "optimization.constant_folding_max_output_size_in_bytes": "1000000"}
#: Weights in bytes up to which a session over a whole variant is opened; ONNX Runtime packs a larger one part by part.
SMALL = 500_000_000


@contextmanager
def exact_runtime(bundle: Bundle, variant: str) -> Iterator[Runtime]:
    """A runtime over a variant whose kernels keep activations in float32; its weights are the file that was written."""
    import onnx_ir as ir

    entry = bundle.manifest.variants[variant]
    file = str(PurePosixPath(entry.file).with_suffix(".exact.onnx"))
    graph = load_graph(bundle, entry.file)
    compute_exactly(graph)
    path = bundle.path / file
    try:
        ir.save(graph, path)  # the weights stay where they are
        files = {**bundle.manifest.files, file: hash_file(path)}
        variants = {variant: entry.model_copy(update={"file": file})}
        manifest = bundle.manifest.model_copy(update={"files": files, "variants": variants})
        # fp32 is multiplied as it lies in its file; blocks of few bits are fast only in the kernels' own layout.
        settings = MAPPED if variant == WHOLE else EXACT
        written = Bundle(bundle.path, manifest, verification="never")
        weights = sum(manifest.files[name].bytes for name in entry.data)
        in_parts = variant != WHOLE and weights > SMALL and entry.decoder_file is None
        kind = SegmentedEngine if in_parts else Engine
        yield Runtime(kind(written, variant, None, kernels="off", settings=settings))
    finally:
        path.unlink(missing_ok=True)


def check_streamed(
    bundle: Bundle,
    checkpoints: Mapping[str, Checkpoint],
    base: StreamedBase,
    rounding: Mapping[str, Rounding],
    announce: Callable[[str], None] = lambda message: None,
) -> tuple[float, tuple[AdapterParity, ...]]:
    """Compare each variant of a written bundle with PyTorch, the base and every adapter.

    Args:
        bundle: The bundle, not yet in its place.
        checkpoints: The adapters.
        base: The base's numbers and its model without them.
        rounding: By variant, what its recipe makes of the parameters that it quantized.
        announce: Is called with a line of text for each variant.

    Returns:
        The base's largest difference, and each adapter's, of the variant where it is largest.

    Raises:
        ParityError: A variant differs by more than rounding explains.
    """
    plain = bundle_probe(bundle)
    probes = {name: adapter_probe(bundle, name, each, base.source, plain) for name, each in checkpoints.items()}
    worst, results = 0.0, dict[str, AdapterParity]()
    for variant, rules in rounding.items():
        announce(f"comparing the base and {len(checkpoints)} adapters in {variant} with PyTorch, block by block")
        found = _check(bundle, variant, checkpoints, base, rules, plain, probes)
        worst = max(worst, found[0])
        for name, each in zip(probes, found[1], strict=True):
            known = results.get(name)
            if known is None or each.max_difference > known.max_difference:
                results[name] = each
    return worst, tuple(results.values())


def _check(
    bundle: Bundle,
    variant: str,
    checkpoints: Mapping[str, Checkpoint],
    base: StreamedBase,
    rules: Rounding,
    plain: Probe,
    probes: Mapping[str, AdapterProbe],
) -> tuple[float, list[AdapterParity]]:
    asked: dict[str | None, Probe] = {None: plain, **{name: each.probe for name, each in probes.items()}}
    asked[None] = whole = _thorough(bundle, plain)
    config, parameters = bundle.read_json("config.json"), bundle.manifest.base.parameters
    far = places(config, bundle.manifest.max_length, parameters, whole.shapes)
    expected, distant = base.outputs(checkpoints, asked, rules, far)
    give_back()
    again: dict[str | None, Found] = {}
    far_again: dict[Place, np.ndarray] = {}
    how = "the same sums in the opposite order"

    def run_again() -> None:
        if not again:
            give_back()
            with sums_reversed():
                found, there = base.outputs(checkpoints, asked, rules, far, backwards=True)
            again.update(found)
            far_again.update(there)

    def noise(name: str | None) -> Noise:
        run_again()
        return Noise(asked[name].difference(again[name], expected[name]), how)

    def noise_far() -> Noise:
        run_again()
        return place_noise(distant, far_again, how)

    with exact_runtime(bundle, variant) as runtime:
        at_once = together_of(runtime)
        thorough, plain = at_once.spread(whole), at_once.spread(plain)
        probes = {name: replace(each, probe=at_once.spread(each.probe)) for name, each in probes.items()}
        forward, session = runtime.base.forward, runtime.base.engine.session
        step: Step = forward
        room = 0
        # A session over the whole graph writes into a cache of hundreds of megabytes in its place; parts return theirs one by one.
        if distant and not isinstance(session, SegmentedSession) and read_signature(session).shared:
            step, room = in_place(session), 1
        mine, *at_places = at_once(
            [
                partial(thorough.run, runtime.base),
                *(partial(run_place, step, whole.shapes, place, room) for place in distant),
            ]
        )
        difference = thorough.difference(mine, expected[None])
        del mine
        judge(f"logits of the base in {variant}", difference, lambda: noise(None))
        for (place, theirs), ours in zip(distant.items(), at_places, strict=True):
            found = place_difference(ours, theirs)
            judge(f"logits of the base in {variant} at position {place.position}", found, noise_far)
            difference = max(difference, found)
        results = at_once(
            [
                partial(judge_adapter, runtime, name, expected[name], each, partial(noise, name))
                for name, each in probes.items()
            ]
        )
        of_adapters = {name: expected[name] for name in probes}
        _, restored = at_once(
            [
                partial(check_mixed, runtime, of_adapters, plain, results),
                partial(base_restored, runtime, plain, at_once),
            ]
        )
        if runtime.adapters and not restored:
            raise ParityError(
                "the base's outputs are not the same bits after the adapters were used; nothing was written"
            )
    return difference, results
