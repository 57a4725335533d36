"""``docs/methods.md``, written from the registry and from what the tests measured.

``python docs/methods_page.py docs/methods.json > docs/methods.md``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepeft.adapters.methods.registry import METHODS, Method

#: By method, base (``bert``, ``llama``) and way to ship: ``at_most`` and the ``test`` that measured it.
Figures = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]

_SHIPS = {
    "swap": "swap, exact",
    "svd": "swap by SVD, else merge",
    "merge": "merge, exact",
    "bake": "bake",
    "refuse": "refused",
}
_WAYS = ("swap", "merge", "bake")
_INTRODUCTION = """\
# Every PEFT method

Written by `python docs/methods_page.py docs/methods.json > docs/methods.md` from the registry
(`edgepeft/adapters/methods/registry.py`) and from what the tests measured (`docs/methods.json`); a test checks that all
three agree.
Methods are those of peft 0.21.

## How a method ships
- *swap*: beside the base, exchanged at run time. *Exact* means a closed form, right up to float32 rounding.
- *by SVD*: the smallest rank whose relative residual is at most 1e-4, or `--max-rank` with the residual reported.
  Where two factors would hold more numbers than the weights they change, the adapter is merged instead.
- *merge*: folded into the weights by `export --mode merge`; every method that can be swapped can be merged too, but
  for those whose edit is a Prefix.
- *over language models*: a Prefix is key/value states that stand before the sequence of a causal language model, see
  [generation.md](generation.md#states-before-the-sequence). Reading virtual tokens takes one run of the base.
- *bake*: traced by `export --mode bake` as PEFT runs it, unmerged: one model for each adapter, without slots. For models that
  read tokens once (classification, features, fill-mask) and for causal language models, which keep their cache and their
  decoder inputs, so that a baked bundle generates like any other. Every method that PEFT can build over a model can be baked
  over it; the methods with *bake* in their row can only be baked there.
- *without torch*: `edgepeft add` needs only the checkpoint and the bundle. The others are run in PEFT over the base
  once, at export: an adapted layer that is not a linear map of its input is refused, whatever its method.

A checkpoint of several tasks (Poly, multitask prompt tuning) holds an adapter for each. Say which behind the path, wherever
an adapter is named: `edgepeft export --adapter sums=./poly#task=0 --adapter dates=./poly#task=1 …`.

A baked language model is traced, not built by mobius, so it decodes slower than a bundle with slots; swap or merge where a
row offers it. Baking computes what a layer makes of its parameters alone once, before tracing. What a baked graph holds beside
the base's cache: nothing for states before the sequence, which are constants and shorten the context by their number; the
cache of its second network for Shadow, as further layers. Lily averages its router over all tokens of a call, padding and
other rows included: a prompt is a call, and so is each token after it. That is what PEFT's own generation computes, and
batches of other rows give other numbers there too.

## What was measured
Every row that ships is built, given random trained numbers that change the output, and compared with PEFT on ragged padded
batches: max |difference| of the logits, relative to the largest where that is above 1, over a BERT classifier and over a Llama
through its cache (prompts and the tokens after them). `≤ 1e-06` is the step that no checkpoint of the method exceeded, of
1e-6, 3e-6, 1e-5, 3e-5 and 1e-4; nothing above is accepted. A dash: not possible, for the reason in the row. BEFT replaces
biases, which Llama's linear layers do not have, so there it can only be baked. `pytest tests/model -m "" -k ADALORA` runs
the tests that a row names; those of refused methods check that they are refused by name and reason.

`pytest tests/model --record-methods -m ""` measures again and writes `docs/methods.json`. The default suite runs the swap and
merge columns whole, and of the bake columns the methods that are traced in ways of their own; `-m slow` runs the others.
Other layers (Conv1D, convolutions, embeddings) and models (ViT, Whisper, CLIP, GPT-2, a network of convolutions) are in
`tests/model/test_model_kinds.py`, encoder-decoders (T5, BART) in `tests/model/test_seq2seq.py`, Prefixes over GPT-2 and OPT in
`tests/model/test_prefix.py`, baked bundles that generate in `tests/model/test_bake_causal.py`.
"""


def _order(method: Method) -> tuple[float, str]:
    return (0.5 if method.virtual else list(_SHIPS).index(method.mode), method.peft_type)


def _ships(method: Method) -> str:
    return f"swap, exact, over language models; else {_SHIPS[method.mode]}" if method.virtual else _SHIPS[method.mode]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    rule = ["---"] * len(head)
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]


def methods_page(figures: Figures) -> str:
    """``docs/methods.md``, of the registry and of the figures in ``docs/methods.json``."""
    methods = sorted(METHODS.values(), key=_order)
    what = [
        (m.peft_type, m.title, _ships(m), m.edits or "-", "yes" if m.without_torch else "-", m.reason or "-")
        for m in methods
    ]
    measured = []
    for method in methods:
        bases = figures.get(method.peft_type, {})
        entries = [bases.get(base, {}).get(way) for base in ("bert", "llama") for way in _WAYS]
        files = dict.fromkeys(entry["test"].partition(".py::")[0] for entry in entries if entry)
        cells = [f"≤ {entry['at_most']:.0e}" if entry else "-" for entry in entries]
        tests = ", ".join(f"`{name}`" for name in files) or "`test_methods_bake`, refused"
        measured.append((method.peft_type, *cells, tests))
    head = ("PEFT type", *(f"{base} {way}" for base in ("BERT", "Llama") for way in _WAYS), "tests")
    return "\n".join(
        [
            _INTRODUCTION,
            *_table(head, measured),
            "",
            "## Every row, and why not better",
            "",
            *_table(("PEFT type", "method", "ships as", "edits", "without torch", "why not better"), what),
            "",
        ]
    )


def main(path: str) -> None:
    """Print the page of the figures in the file ``path``."""
    sys.stdout.write(methods_page(json.loads(Path(path).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(sys.argv[1])
