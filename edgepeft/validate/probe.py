"""What is run to compare a bundle with PyTorch: one kind of probe for each kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..base.parity import output_difference, reference_outputs
from ..base.parity_causal import CausalBatch, causal_batches, causal_difference, reference_causal, run_causal
from ..base.parity_seq2seq import following_tokens, reference_logits, teacher_forced
from ..base.samples import bundle_batches
from ..bundle import Bundle
from ..bundle.manifest_heads import task_outputs

#: Outputs of every batch, by name.
Found = list[dict[str, np.ndarray]]
Arrays = Mapping[str, np.ndarray]


class Runs(Protocol):
    """What a probe runs: a runtime, a view, or graphs that take their slots as inputs."""

    @property
    def decoder_shapes(self) -> Mapping[str, Sequence[int | str]]:
        """The inputs of an encoder-decoder's decoder, with their shapes."""

    def forward(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run arrays through the base (of an encoder-decoder: its encoder); raw outputs by name."""

    def decode(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run arrays through the decoder of an encoder-decoder; raw outputs by name."""


class Probe(Protocol):
    """Inputs, and how to run and compare both sides on them."""

    def brief(self) -> Probe:
        """The same with one batch only, to see whether something changed at all."""

    def run(self, runtime: Runs) -> Found:
        """What the runtime computes, with the adapter in use."""

    def reference(self, module: Any) -> Found:
        """What the PyTorch module computes."""

    def difference(self, mine: Found, reference: Found) -> float:
        """max |difference|, relative where numbers exceed 1, padding ignored."""


def same_outputs(one: Found, other: Found) -> bool:
    """Whether two findings are the same numbers; a NaN is the same as a NaN."""
    return all(
        a[name].shape == b[name].shape and np.array_equal(a[name], b[name], equal_nan=True)
        for a, b in zip(one, other, strict=True)
        for name in a
    )


@dataclass(frozen=True)
class BatchProbe:
    """One forward a batch: ragged padded batches, all outputs."""

    batches: list[dict[str, np.ndarray]]
    outputs: list[str]

    def brief(self) -> BatchProbe:
        """The same with its first batch only."""
        return replace(self, batches=self.batches[:1])

    def run(self, runtime: Runs) -> Found:
        """What the runtime computes, with the adapter in use."""
        return [runtime.forward(batch) for batch in self.batches]

    def reference(self, module: Any) -> Found:
        """What the PyTorch module computes."""
        return [reference_outputs(module, batch, self.outputs) for batch in self.batches]

    def difference(self, mine: Found, reference: Found) -> float:
        """max |difference|, relative where numbers exceed 1, padding ignored."""
        return max(
            output_difference(found, expected, batch.get("attention_mask"))
            for found, expected, batch in zip(mine, reference, self.batches, strict=True)
        )


@dataclass(frozen=True)
class CausalProbe:
    """Prompts and the tokens after them, through the cache; ``shapes`` are the graph's inputs."""

    batches: list[CausalBatch]
    shapes: Mapping[str, tuple[int | str, ...]]

    def brief(self) -> CausalProbe:
        """The same with its first batch only."""
        return replace(self, batches=self.batches[:1])

    def run(self, runtime: Runs) -> Found:
        """Logits of prompts and of following tokens, with the adapter in use."""
        pairs = [run_causal(runtime.forward, self.shapes, batch) for batch in self.batches]
        return [{"prompt": prompt, "following": following} for prompt, following in pairs]

    def reference(self, module: Any) -> Found:
        """The same logits from PyTorch."""
        pairs = [reference_causal(module, batch) for batch in self.batches]
        return [{"prompt": prompt, "following": following} for prompt, following in pairs]

    def difference(self, mine: Found, reference: Found) -> float:
        """max |logit difference|, relative where logits exceed 1, padding ignored."""
        return max(
            causal_difference(
                (found["prompt"], found["following"]), (expected["prompt"], expected["following"]), batch.mask
            )
            for found, expected, batch in zip(mine, reference, self.batches, strict=True)
        )


@dataclass(frozen=True)
class Seq2SeqProbe:
    """An input read once and tokens forced on the decoder, through its cache."""

    batches: list[dict[str, np.ndarray]]
    following: list[np.ndarray]

    def brief(self) -> Seq2SeqProbe:
        """The same with its first batch only."""
        return replace(self, batches=self.batches[:1], following=self.following[:1])

    def run(self, runtime: Runs) -> Found:
        """Logits after each forced token, with the adapter in use."""
        shapes = runtime.decoder_shapes
        return [
            {"logits": teacher_forced(runtime.forward, runtime.decode, batch, following, shapes)}
            for batch, following in zip(self.batches, self.following, strict=True)
        ]

    def reference(self, module: Any) -> Found:
        """The same logits from PyTorch."""
        pairs = zip(self.batches, self.following, strict=True)
        return [{"logits": reference_logits(module, batch, following)} for batch, following in pairs]

    def difference(self, mine: Found, reference: Found) -> float:
        """max |logit difference|, relative where logits exceed 1."""
        return max(output_difference(found, expected, None) for found, expected in zip(mine, reference, strict=True))


def bundle_probe(bundle: Bundle) -> Probe:
    """The probe that fits a bundle."""
    manifest = bundle.manifest
    if manifest.task == "text2text-generation" or manifest.hears:
        settings = bundle.read_json("config.json")
        batches = bundle_batches(bundle)
        start = int(settings["decoder_start_token_id"])
        return Seq2SeqProbe(batches, [following_tokens(b, int(settings["vocab_size"]), start) for b in batches])
    if manifest.task != "text-generation":
        names = [name for task in tuple(manifest.tasks) or (manifest.task,) for name in task_outputs(manifest, task)]
        return BatchProbe(bundle_batches(bundle), list(dict.fromkeys(names)))
    config = bundle.read_json("config.json")
    before = max((entry.prefix_length for entry in manifest.adapters.values()), default=0)
    prompts = causal_batches(
        vocab=int(config["vocab_size"]),
        pad_id=int(config.get("pad_token_id") or 0),
        max_length=None if manifest.max_length is None else manifest.max_length - before,
        window=config.get("sliding_window"),
        config=config,
        parameters=manifest.base.parameters,
    )
    return CausalProbe(prompts, {value.name: value.shape for value in manifest.inputs})
