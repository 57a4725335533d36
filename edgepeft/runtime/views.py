"""Views: an engine and the adapter that its calls run with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack, overload

import numpy as np

from ..bundle import head_of
from ..errors import InputError
from .active import ActiveAdapter
from .arrays import Adapters, Inputs, check_rows
from .embedding import EmbedOptions, embed, truncated
from .engine import Engine
from .generation.generator import check_adapters, check_batch_size
from .predictions import THRESHOLD, Prediction, check_threshold
from .sessions import run_values
from .speech_calls import SpeechCalls
from .tasks import BY_TASK, TaskRun
from .text import Texts
from .writing_calls import WritingCalls


class Calls(WritingCalls, SpeechCalls):
    """What a view can be asked, and a runtime, which asks the view that it holds when the call comes.

    A call takes one view and keeps it to its end. Texts are given one at a time or as a list: one text gives one result, a
    list gives a list (a tuple of two strings is a list of two texts). ``adapters`` names an adapter for each row of a list, in
    place of the view's own; ``None`` is the base.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def view(self) -> View:
        """The view that a call made now runs with."""

    def encode(self, texts: Texts | str) -> dict[str, np.ndarray]:
        """Padded int64 arrays ``[batch, sequence]`` by input name; pairs of texts are encoded as pairs.

        One text is a batch of one, so that :meth:`forward` takes what comes back.
        """
        return self.encoder.encode(_listed(texts))

    def truncated(self, texts: Texts | str, **options: Unpack[EmbedOptions]) -> list[int]:
        """Positions of the texts that have more tokens than are read of them; :meth:`encode` cuts them.

        ``options`` are those of :meth:`embed`: where texts are embedded, their prompts count, and the adapter's own limit.
        """
        view = self.view
        if view.task == "feature-extraction":
            return truncated(view.engine, _listed(texts), view.active, options)
        return view.encoder.truncated(_listed(texts))

    def forward(self, inputs: Inputs, *, adapters: Adapters | None = None) -> dict[str, np.ndarray]:
        """Run arrays through the base; raw outputs by name.

        Args:
            inputs: An array for each input of the base, ``[batch, ...]``, as :meth:`encode` gives them.
            adapters: An adapter for each row of the batch.

        Returns:
            Arrays ``[batch, ...]``. Where rows have heads of different label counts, ``logits`` is as wide as the widest, and
            minus infinity stands behind the labels of the others.

        Raises:
            InputError: Arrays that do not fit the base, or adapters that cannot share a batch.
        """
        view = self.view
        if adapters is None:
            return view.engine.run(inputs, view.active)
        check_adapters(adapters)
        check_rows(inputs, len(adapters), view.manifest)
        return view.engine.run(inputs, view.engine.mixed(adapters))

    def decode(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Run arrays through an encoder-decoder's decoder, caches included; raw outputs by name. :meth:`forward` is its encoder."""
        view = self.view
        session = view.engine.decoder_session
        slots = {value.name for value in session.get_overridable_initializers()}
        values = {name: value for name, value in view.engine.slot_values(view.active).items() if name in slots}
        return run_values(session, [output.name for output in session.get_outputs()], inputs, values)

    @overload
    def logits(self, texts: Texts | str, *, adapters: None = None, batch_size: int = 32) -> np.ndarray: ...

    @overload
    def logits(self, texts: Texts, *, adapters: Adapters, batch_size: int = 32) -> list[np.ndarray]: ...

    def logits(
        self, texts: Texts | str, *, adapters: Adapters | None = None, batch_size: int = 32
    ) -> np.ndarray | list[np.ndarray]:
        """Logits for texts of a classification base.

        Returns:
            An array ``[rows, labels]``; of one text ``[labels]``. With ``adapters`` a list with an array ``[labels]`` for each
            row, as long as its own adapter has labels.
        """
        found: list[np.ndarray] = []
        for run in self._classified(texts, adapters, batch_size):
            found += [run.row(row) for row in range(len(run.texts))]
        if isinstance(texts, str):
            return found[0]
        return found if adapters is not None else np.stack(found)

    @overload
    def predict(  # type: ignore[overload-overlap] # a text is a sequence of texts to mypy
        self, texts: str, *, adapters: None = None, batch_size: int = 32, threshold: float = THRESHOLD
    ) -> Prediction: ...

    @overload
    def predict(
        self, texts: Texts, *, adapters: Adapters | None = None, batch_size: int = 32, threshold: float = THRESHOLD
    ) -> list[Prediction]: ...

    def predict(
        self,
        texts: Texts | str,
        *,
        adapters: Adapters | None = None,
        batch_size: int = 32,
        threshold: float = THRESHOLD,
    ) -> Prediction | list[Prediction]:
        """What the head of each text's adapter says of it.

        Args:
            texts: One text or a list; pairs for a head over two texts.
            adapters: An adapter for each text.
            batch_size: Texts in one run.
            threshold: The probability above which a label of a multi-label head is among ``labels``.

        Returns:
            For each text a :class:`Prediction` (the best label, with a softmax over all), a :class:`MultiLabelPrediction` (a
            sigmoid for each label, and those above ``threshold``) or a :class:`Score` (the numbers of a regression, a reward
            model or a cross-encoder), as the ``problem_type`` of the adapter's head says.

        Raises:
            InputError: The adapter's task is another one, or an option is wrong.
            NonFiniteError: Logits that are NaN or infinite.

        Example:
            >>> model.adapter("reviews").predict("I would buy it again").label
            'positive'
            >>> [p.label for p in model.predict(texts, adapters=["reviews", "topics"])]
            ['negative', 'Sports']
        """
        check_threshold(threshold)
        found: list[Prediction] = []
        for run in self._classified(texts, adapters, batch_size):
            found += run.predictions(threshold)
        return found[0] if isinstance(texts, str) else found

    @overload
    def run(  # type: ignore[overload-overlap] # as above
        self, texts: str, *, adapters: None = None, threshold: float = THRESHOLD, **embedding: Unpack[EmbedOptions]
    ) -> dict[str, Any]: ...

    @overload
    def run(
        self, texts: Texts, *, adapters: Adapters | None = None, threshold: float = THRESHOLD,
        **embedding: Unpack[EmbedOptions],
    ) -> list[dict[str, Any]]: ...  # fmt: skip

    def run(
        self,
        texts: Texts | str,
        *,
        adapters: Adapters | None = None,
        threshold: float = THRESHOLD,
        **embedding: Unpack[EmbedOptions],
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Each text's result in the shape of the bundle's task, ready for JSON.

        Classification gives ``label``, ``score`` and ``probabilities``, with ``labels`` above ``threshold`` where a text may
        have several, and ``values`` with ``logits`` in place of probabilities where the head gives numbers; token
        classification ``tokens`` with a label each; fill-mask the five best ``fills``; feature extraction the ``embedding``,
        for which ``embedding`` are options of :meth:`embed`; question answering, of a pair of a question and a context, the
        ``answer`` with its ``score`` and its ``start`` and ``end`` in characters; what writes a text what :class:`Generation`
        holds.
        """
        view, rows = self.view, _rows(texts, adapters)
        task = view.task
        if adapters is not None and view.manifest.tasks:
            return view._by_task(rows, adapters, threshold, embedding)
        if embedding and task != "feature-extraction":
            raise InputError(f"{', '.join(embedding)}: these are for embeddings; {view.bundle.path} is for {task}")
        if view.manifest.writes:
            if not all(isinstance(text, str) for text in rows):
                raise InputError("pairs of texts cannot be generated from")
            written = view.generate([str(text) for text in rows], adapters=adapters)
            found = [each.as_dict() for each in written]
        elif task == "text-classification":
            found = [each.as_dict() for each in view.predict(rows, adapters=adapters, threshold=threshold)]
        elif task == "feature-extraction":
            found = [{"embedding": each.tolist()} for each in view._embedded(rows, adapters, 32, embedding)]
        elif task in BY_TASK:
            active = view.active if adapters is None else view.engine.mixed(adapters)
            found = BY_TASK[task](view._texts(rows, active))
        else:
            raise InputError(
                f"{view.bundle.path} is for {task}, which does not run on texts here: {', '.join(BY_TASK)}, feature-extraction, "
                "text-generation and text2text-generation do"
            )
        return found[0] if isinstance(texts, str) else found

    def embed(
        self, texts: Texts | str, *, adapters: Adapters | None = None, batch_size: int = 32,
        **options: Unpack[EmbedOptions],
    ) -> np.ndarray:  # fmt: skip
        """Embeddings of texts, as sentence-transformers' ``encode`` gives them for the folder that was exported.

        Args:
            texts: One text or a list.
            adapters: An adapter for each text; each brings its pooling, prompts and limit where its folder says so.
            batch_size: Texts in one run.
            **options: ``prompt`` (a text that is put before each) or ``prompt_name`` (of one of the model's prompts), in place of
                the model's default prompt; ``dim``: keep so many numbers (``encode``'s ``truncate_dim``); ``normalize``: bring
                the result to length 1, after the cut (its ``normalize_embeddings``).

        Returns:
            An array ``[rows, dimension]`` float32; of one text ``[dimension]``.

        Raises:
            InputError: The bundle's task is another, an option is wrong, or the adapters' embeddings differ in size.
            NonFiniteError: An embedding holds NaN or infinity.

        Example:
            >>> query = model.embed("how do I reset it?", prompt_name="query", dim=256, normalize=True)
            >>> query.shape
            (256,)
        """
        view, rows = self.view, _rows(texts, adapters)
        check_batch_size(batch_size)
        found = view._embedded(rows, adapters, batch_size, options)
        sizes = sorted({each.size for each in found})
        if len(sizes) > 1:
            raise InputError(
                f"the adapters' embeddings have {sizes} numbers, so they make no array; cut them with dim, or use run"
            )
        return found[0] if isinstance(texts, str) else np.stack(found)

    def _embedded(
        self, rows: list[Any], adapters: Adapters | None, batch_size: int, options: EmbedOptions
    ) -> list[np.ndarray]:
        if not rows:
            raise InputError("no texts were given")
        view = self.view
        return embed(view.engine, rows, view.active, adapters, batch_size, options)

    def _by_task(
        self, rows: list[Any], adapters: Adapters, threshold: float, embedding: EmbedOptions
    ) -> list[dict[str, Any]]:
        """Rows with adapters of several tasks: those of each task in a batch of their own."""
        view = self.view
        places: dict[str | None, list[int]] = {}
        for place, name in enumerate(adapters):
            places.setdefault(head_of(view.manifest, name).task, []).append(place)
        found: dict[int, dict[str, Any]] = {}
        for task, mine in places.items():
            names = [adapters[place] for place in mine]
            if task == "feature-extraction":
                vectors = view._embedded([rows[place] for place in mine], names, 32, embedding)
                found |= {place: {"embedding": each.tolist()} for place, each in zip(mine, vectors, strict=True)}
                continue
            # One adapter for all of them needs no batch of several, which some adapters cannot be in.
            chosen = view.engine.mixed(names) if len(set(names)) > 1 else view.engine.adapter(names[0])
            run = view._texts([rows[place] for place in mine], chosen)
            results = (
                [each.as_dict() for each in run.predictions(threshold)]
                if task == "text-classification"
                else BY_TASK[task or ""](run)
            )
            found |= dict(zip(mine, results, strict=True))
        return [found[place] for place in range(len(rows))]

    def _classified(self, texts: Texts | str, adapters: Adapters | None, batch_size: int) -> Iterator[TaskRun]:
        view, rows = self.view, _rows(texts, adapters)
        check_batch_size(batch_size)
        tasks = {view.task} if adapters is None else {head_of(view.manifest, name).task for name in adapters}
        if odd := sorted(map(str, tasks - {"text-classification"})):
            raise InputError(f"this bundle's task is {odd[0]}; use encode and forward")
        if not rows:
            raise InputError("no texts were given")
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            active = view.active if adapters is None else view.engine.mixed(adapters[part])
            yield view._texts(rows[part], active)

    def _texts(self, texts: list[Any], active: ActiveAdapter) -> TaskRun:
        engine = self.view.engine
        inputs = engine.encode(texts, active)
        if active.head.task == "question-answering" and active is not engine.base and "token_type_ids" in inputs:
            # PEFT's model for questions (0.21) passes none on, in training too: its adapters know but one type.
            inputs = {**inputs, "token_type_ids": np.zeros_like(inputs["token_type_ids"])}
        encoders = [engine.encoder_of(active.text_of(row)) for row in range(len(texts))]
        return TaskRun(texts, inputs, engine.run(inputs, active), active, encoders, engine.variant, engine.bundle.path)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class View(Calls):
    """An engine with an adapter, a blend or the base: immutable, cheap to make, safe to share among threads.

    Made by :meth:`Runtime.adapter` and :attr:`Runtime.base`. It holds the adapter in memory as long as it lives.
    """

    engine: Engine
    active: ActiveAdapter

    @property
    def view(self) -> View:
        """Itself."""
        return self

    @property
    def name(self) -> str | None:
        """The adapter's name (``a=0.7, b=0.3`` for a blend), ``None`` for the base."""
        return self.active.name or None

    @property
    def scale(self) -> float:
        """What the adapter's low-rank part is multiplied by."""
        return self.active.scale

    def __repr__(self) -> str:
        scaled = f", scale={self.scale:g}" if self.scale != 1.0 else ""
        labels = f", labels={list(self.labels)}" if self.labels else ""
        closed = ", closed" if self.engine.closed else ""
        return (
            f"<View of {str(self.bundle.path)!r}: {self.name or 'the base'}{scaled}{labels}, {self.task}, "
            f"{self.variant}{closed}>"
        )


def _listed(texts: Texts | str) -> Texts:
    return [texts] if isinstance(texts, str) else texts


def _rows(texts: Texts | str, adapters: Adapters | None) -> list[Any]:
    """Texts as a list, with as many adapters where those are given."""
    rows = list(_listed(texts))
    if adapters is not None:
        if isinstance(texts, str):
            raise InputError("adapters by row are for a list of texts; choose one text's adapter with adapter()")
        check_adapters(adapters)
        if len(adapters) != len(rows):
            raise InputError(f"{len(adapters)} adapters for {len(rows)} texts; give one for each, None for the base")
    return rows
