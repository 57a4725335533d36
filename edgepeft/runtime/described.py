"""What a view says of itself: its bundle, adapter, task, labels, tokenizer and generator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from ..bundle import Bundle, Manifest
from ..html_table import html_table
from .active import ActiveAdapter
from .awaited import AwaitedCalls
from .embedding import limit_of
from .engine import Engine
from .generation import Generator
from .generation.chat import ChatTemplate
from .text import TextEncoder


class Chosen(Protocol):
    """An engine, and the adapter that its calls run with."""

    @property
    def engine(self) -> Engine:
        """What runs."""

    @property
    def active(self) -> ActiveAdapter:
        """The adapter, a blend, or the base."""

    @property
    def name(self) -> str | None:
        """The adapter's name, ``None`` for the base."""

    @property
    def scale(self) -> float:
        """What the adapter's low-rank part is multiplied by."""


class Described(AwaitedCalls):
    """What can be read off a view, and off a runtime, which asks the view that it holds then."""

    __slots__ = ()

    @property
    @abstractmethod
    def view(self) -> Chosen:
        """The view that a call made now runs with."""

    def _repr_html_(self) -> str:
        """What notebooks show: what the calls run with."""
        view, labels = self.view, ", ".join(self.labels or ()) or None
        row = (view.name or "(the base)", self.task, labels, view.scale, self.variant, ", ".join(self.adapters) or None)
        columns = ("adapter", "task", "labels", "scale", "variant", "adapters there are")
        return html_table(f"{type(self).__name__} of {self.bundle.path}", columns, [row])

    @property
    def bundle(self) -> Bundle:
        """The bundle that was opened."""
        return self.view.engine.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.view.engine.manifest

    @property
    def variant(self) -> str:
        """The variant that runs."""
        return self.view.engine.variant

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the bundle."""
        return tuple(self.manifest.adapters)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The adapter's labels, or the base's."""
        return self.view.active.labels

    @property
    def task(self) -> str:
        """What it is for: the bundle's task, or the adapter's over a base of several."""
        return self.view.active.head.task or self.manifest.task

    @property
    def longest_text(self) -> int | None:
        """How many tokens of a text are read: the base's longest input, or what texts are cut to where they are embedded."""
        view = self.view
        return limit_of(view.engine.manifest, view.active.embedding)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end what is generated."""
        return self.generator.defaults.eos

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that prompts go through; ``None`` where there is none."""
        return self.generator.template

    @property
    def labels_are_untrained(self) -> bool:
        """Whether the classification head is the zero one that stands in for what the checkpoint lacks."""
        name, manifest = self.view.active.name, self.manifest
        classifies = self.task.endswith("-classification") and not self.task.startswith("zero-shot")
        return classifies and not name and manifest.mode == "swap" and bool(manifest.base.fresh)

    @property
    def encoder(self) -> TextEncoder:
        """The tokenizer: the adapter's own, else the bundle's."""
        view = self.view
        return view.engine.encoder_of(view.active.text)

    @property
    def generator(self) -> Generator:
        """What generation needs of this bundle; :class:`InputError` for one whose task does not write."""
        view = self.view
        return view.engine.generator_of(view.active.text)

    @property
    def decoder_shapes(self) -> dict[str, Sequence[int | str]]:
        """The inputs of an encoder-decoder's decoder, with their shapes."""
        return {value.name: value.shape for value in self.view.engine.decoder_session.get_inputs()}
