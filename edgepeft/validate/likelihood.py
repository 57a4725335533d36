"""What a language model makes of rows: how likely the text is, how far a variant is from fp32, and what it writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, InputError
from ..metrics import Scored
from ..runtime import View, read_sound
from ..runtime.generation.decoder import Decoder
from .chunks import ALONE, Chunks
from .language_rows import LanguageRow, LanguageRows

#: A longer text is read in pieces of at most so many tokens; each but the first begins with the token that the last ended with.
PIECE = 1024
#: Logits of so many tokens are held at once: of 262,144 words they take 64 MB.
_STEP = 64
#: At most so many tokens are generated for a row with a reference.
MAX_NEW_TOKENS = 128


def language_scored(
    view: View,
    name: str | None,
    rows: LanguageRows,
    data: str,
    against: View | None,
    *,
    write: bool = True,
    chunks: Chunks = ALONE,
) -> tuple[Scored, ...]:
    """Likelihood of every row's text (of rows with a prompt: of the answer), and what is generated for rows with a prompt.

    Args:
        view: The adapter or the base, in one variant.
        name: The adapter's name, ``None`` for the base.
        rows: What is read.
        data: What reports call the rows.
        against: The same in fp32, for divergences; ``None`` where there is none.
        write: Whether to generate too.
        chunks: How many rows are run at a time, and where their answers are kept.

    Returns:
        Of an encoder-decoder what it writes alone.
    """
    scored = []
    if view.manifest.task == "text-generation":
        found = chunks.run(
            len(rows),
            "losses",
            lambda places: {"sums": np.array([_row_losses(view, rows.rows[place], against) for place in places])},
        )["sums"]
        scored.append(Scored(name, view.variant, data, "likelihood", np.zeros(len(rows)), found))
    asked = [place for place, row in enumerate(rows.rows) if row.prompt is not None]
    if asked and write:
        texts = chunks.run(
            len(asked), "texts", lambda places: {"texts": [_written(view, rows.rows[asked[place]]) for place in places]}
        )["texts"]
        references = np.array([rows.rows[place].answer for place in asked], dtype=object)
        scored.append(Scored(name, view.variant, data, "text", references, np.array(texts, dtype=object)))
    return tuple(scored)


def _written(view: View, row: LanguageRow) -> str:
    """What the model goes on with, greedily, or what it hears."""
    if view.manifest.hears:
        wave, rate = read_sound(str(row.prompt))
        try:
            return view.transcribe(wave, sampling_rate=rate, language=row.language, temperature=0).text
        except InputError as error:
            raise DataError(f"{row.where}: {error}") from error
    prompt: Any = list(row.prompt) if isinstance(row.prompt, tuple) else row.prompt
    wanted = min(MAX_NEW_TOKENS, 2 * len(view.generator.tokens.encode(row.answer, special=False)) + 8)
    try:
        return view.generate(prompt, temperature=0, max_new_tokens=wanted).text
    except InputError as error:
        raise DataError(f"{row.where}: {error}") from error


def _row_losses(view: View, row: LanguageRow, against: View | None) -> tuple[float, float, float, float]:
    """Summed loss and tokens, summed divergence from fp32 and agreeing tokens; see :mod:`edgepeft.metrics.scores`."""
    ids, start = row_tokens(view, row)
    room = view.generator.prompts.room(view.active.prefix_length)
    size = min(PIECE, room or PIECE)
    if start >= size:
        raise DataError(f"{row.where}: the prompt has {start} tokens, and {size} are read at a time: shorten it")
    if row.prompt is not None:
        ids = ids[:size]
    sums = np.zeros(4)
    for begin in range(0, max(len(ids) - 1, 1), size - 1):
        piece = ids[begin : begin + size]
        first = max(1, start - begin)
        mine = logarithms(view, piece, first - 1)
        others = None if against is None else logarithms(against, piece, first - 1)
        for place, found in mine:
            wanted = np.asarray(piece[place + 1 : place + 1 + len(found)])
            sums[0] -= found[np.arange(len(wanted)), wanted].sum()
            sums[1] += len(wanted)
            if others is not None:
                _, reference = next(others)
                sums[2] += (np.exp(reference) * (reference - found)).sum()
                sums[3] += (reference.argmax(axis=1) == found.argmax(axis=1)).sum()
    return sums[0], sums[1], sums[2], sums[3]


def row_tokens(view: View, row: LanguageRow) -> tuple[list[int], int]:
    """A row's tokens, and the place of the first that is judged."""
    generator = view.generator
    if row.prompt is None:
        return generator.tokens.encode(row.answer, special=True), 1
    template = generator.template
    if template is None and isinstance(row.prompt, tuple):
        raise DataError(f"{row.where}: messages need a chat template, and {view.bundle.path} has none")
    if template is None:
        whole = generator.tokens.encode(f"{row.prompt}{row.answer}", special=True)
        before = generator.tokens.encode(str(row.prompt), special=True)
    else:
        asked = list(row.prompt) if isinstance(row.prompt, tuple) else [{"role": "user", "content": row.prompt}]
        text = template.render([*asked, {"role": "assistant", "content": row.answer}], add_generation_prompt=False)
        whole = generator.tokens.encode(text, special=False)
        before = generator.tokens.encode(template.render(asked), special=False)
        # What the template puts behind the closing token is layout: nobody generates it.
        ends = [place for place, token in enumerate(whole) if token in generator.defaults.eos]
        whole = whole[: ends[-1] + 1] if ends else whole
    # A token that spans the border holds a part of the answer, so it is judged.
    same = next(
        (i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), min(len(whole), len(before))
    )
    return whole, max(1, same)


def logarithms(view: View, tokens: Sequence[int], first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Log-probabilities of the token after each place from ``first`` on, as ``(place, [places, vocabulary])`` in float64."""
    decoder = view.decoder(1, len(tokens))
    last = len(tokens) - 1  # nothing is predicted after it
    place = 0
    while place < last:
        # The places before ``first`` are read, and their logits left.
        end = min(last, place + _STEP) if isinstance(decoder, Decoder) else place + 1
        part = np.array([tokens[place:end]], np.int64)
        if isinstance(decoder, Decoder):
            logits = decoder.feed(part, np.ones_like(part), 0, np.arange(place, end)[None])[0]
        else:
            logits = decoder.step(tokens[place:end])
        keep = max(first, place)
        if keep < end:
            yield keep, log_softmax(logits[keep - place :])
        place = end


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities over the last axis, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found
