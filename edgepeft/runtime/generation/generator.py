"""What a bundle needs to generate, read once and shared by all calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

from ...bundle import NO_TEXT, OwnText
from ...errors import InputError
from ..active import ActiveAdapter
from .chat import ChatTemplate
from .decoder import CHUNK, Decoder, rows_of
from .defaults import NEW_TOKENS, Defaults
from .draft import RunCosts, check_draft
from .encoder import Prompt, PromptEncoder
from .gpu_decoder import GpuDecoder, piece_size
from .graphs import Graphs
from .loop import Generation, Plan, Run, Steps
from .options import Options
from .signature import Signature, read_signature
from .switched import EachAlone, SwitchedDecoder
from .tokens import Tokens, check_stops


class Generator:
    """The parts that generation needs: tokenizer, template, defaults, graph. A call changes none of them.

    There is one for each different text of a bundle; they share the graph.
    """

    #: Whether what is generated goes on from the prompt.
    continues = True
    #: What turns prompts into tokens.
    encoder: type[PromptEncoder] = PromptEncoder

    def __init__(self, graphs: Graphs, own: OwnText = NO_TEXT) -> None:
        self.graphs = graphs
        self.prompts = self.encoder(graphs.bundle, own)
        self.tokens: Tokens = self.prompts.tokens
        self.defaults: Defaults = self.prompts.defaults
        #: What runs over several tokens cost here; drafts are no longer than it repays.
        self.costs = RunCosts()

    @cached_property
    def signature(self) -> Signature:
        """What the decoder graph takes and returns."""
        session = self.graphs.session
        if self.graphs.device == "cpu":
            return read_signature(session)
        return read_signature(session, self.graphs.slot_values(self.graphs.base))

    @cached_property
    def tokens_at_once(self) -> int:
        """How many tokens of a prompt are read at a time: few where a GPU computes attention over more of them wrongly."""
        if self.graphs.device == "cpu":
            return CHUNK
        graphs = self.graphs
        slots = graphs.slot_values(graphs.base)
        return piece_size(graphs.session, self.signature, slots, graphs.bundle.manifest.max_length)

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template."""
        return self.prompts.template

    def encode(self, prompt: Prompt, options: Options, before: int = 0) -> list[int]:
        """A prompt's tokens: see :meth:`PromptEncoder.encode`."""
        return self.prompts.encode(
            prompt, chat=options.chat, system=options.system, before=before, arguments=options.template_arguments
        )

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, before: int = 0) -> Plan:
        """When to stop and how to choose, for these prompts."""
        longest = max(map(len, prompts))
        if options.max_new_tokens is None:
            left = self.prompts.left(longest, before)
            new = self.defaults.new_tokens or NEW_TOKENS
            new = new if left is None else min(new, left)
        else:
            new = self.prompts.new_tokens(longest, options.max_new_tokens, before)
        sampling = self.defaults.sampling(
            options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed
        )
        stops, stop_tokens = self.prompts.tokens.stops(check_stops(options.stop))
        ends = self.defaults.eos | self.prompts.tokens.numbers(options.eos)
        check_draft(options.draft)
        costs = self.costs if options.draft is not None else None
        return Plan(sampling, new, stops, ends, stop_tokens, self.tokens, costs)

    def decoder(self, active: ActiveAdapter, rows: int, capacity: int) -> Steps:
        """A fresh decoder with the adapter's tensors bound and its states in the cache; ``capacity`` tokens follow them."""
        feeds = self.graphs.slot_values(active)
        whole = capacity + active.prefix_length
        switch = self.graphs.bundle.manifest.rope_switch
        if switch is None or (rows > 1 and whole <= switch):
            return self._decoder(rows, feeds, whole, active)

        def alone(row: int) -> SwitchedDecoder:
            mine = rows_of(feeds, [row], active.row_names is not None)
            return SwitchedDecoder(
                lambda: self._decoder(1, mine, whole, active),
                switch - active.prefix_length,
            )

        return alone(0) if rows == 1 else EachAlone([alone(row) for row in range(rows)])

    def _decoder(self, rows: int, feeds: Mapping[str, Any], capacity: int, active: ActiveAdapter) -> Decoder:
        session, signature = self.graphs.session, self.signature
        decoder: Decoder
        if self.graphs.device == "cpu":
            decoder = Decoder(session, signature, rows, feeds, capacity, prefix=active.prefix)
        else:
            at_once = self.tokens_at_once
            decoder = GpuDecoder(session, signature, rows, feeds, capacity, prefix=active.prefix, chunk=at_once)
        decoder.mixed = active.row_names is not None
        return decoder

    def run(
        self,
        prompts: Sequence[Prompt],
        options: Options,
        active: ActiveAdapter,
        adapters: Sequence[str | None],
        first_row: int = 0,
    ) -> Run:
        """A run over a batch of prompts, not begun; it holds the adapter to its end."""
        started = perf_counter()
        before = active.prefix_length
        writers = [self.graphs.generator_of(active.text_of(row)) for row in range(len(prompts))]
        encoded = [writer.encode(prompt, options, before) for writer, prompt in zip(writers, prompts, strict=True)]
        plans = [writer.plan(encoded, options, before) for writer in writers]
        # The last token is never fed, but a batch's mask is as wide as its longest prompt.
        capacity = max(map(len, encoded)) + max(plan.max_new_tokens for plan in plans)
        decoder = self.decoder(active, len(encoded), capacity)
        return Run(
            decoder,
            encoded,
            plans,
            adapters,
            started,
            first_row=first_row,
            continues=self.continues,
            variant=self.graphs.variant,
            path=self.graphs.bundle.path,
        )

    def generate(
        self,
        prompt: Any,
        active: ActiveAdapter,
        adapters: Sequence[str | None] | None,
        batch_size: int,
        options: Options,
    ) -> Generation | list[Generation]:
        """One prompt's generation, or a list of them for a list of prompts; ``adapters`` by row take ``active``'s place."""
        if not is_batch(prompt):
            if adapters is not None:
                raise InputError(
                    "adapters by row are for a list of prompts; choose one prompt's adapter with adapter()"
                )
            return _collect(self.run([prompt], options, active, [active.name or None]))[0]
        check_batch_size(batch_size)
        if not prompt:
            raise InputError("no prompts; give at least one")
        if adapters is not None:
            check_adapters(adapters)
            if len(adapters) != len(prompt):
                raise InputError(
                    f"{len(adapters)} adapters for {len(prompt)} prompts; give one for each, None for the base"
                )
        found: list[Generation] = []
        for start in range(0, len(prompt), batch_size):
            part = list(prompt[start : start + batch_size])
            if adapters is None:
                found += _collect(self.run(part, options, active, [active.name or None] * len(part), start))
            else:
                names = list(adapters[start : start + batch_size])
                found += _collect(self.run(part, options, self.graphs.mixed(names), names, start))
        return found


def is_batch(prompt: Any) -> bool:
    """Whether ``prompt`` is a list of prompts: texts, arrays of token ids, or chats that are lists of messages."""
    if isinstance(prompt, (str, Mapping)) or not isinstance(prompt, Sequence):
        return False
    return not prompt or not isinstance(prompt[0], Mapping)


def check_batch_size(batch_size: Any) -> None:
    """Raise :class:`InputError` for what is no count of rows."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")


def check_adapters(adapters: Any) -> None:
    """Raise :class:`InputError` for what is no list of adapter names."""
    if isinstance(adapters, str) or not isinstance(adapters, Sequence):
        raise InputError(f"adapters is a list with a name or None for each row, found {adapters!r}")
    wrong = next((name for name in adapters if not (name is None or isinstance(name, str))), None)
    if wrong is not None:
        raise InputError(f"adapters by row are names or None, found {wrong!r}; blends and scales serve whole batches")


def _collect(run: Run) -> list[Generation]:
    for _ in run:
        pass
    return run.results()
