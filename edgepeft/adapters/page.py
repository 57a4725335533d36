"""``docs/methods.md``, written from the registry: ``python -m edgepeft.adapters.page > docs/methods.md``."""

from __future__ import annotations

import sys

from .registry import METHODS


def methods_page() -> str:
    """``docs/methods.md``."""
    ships = {
        "swap": "swap, exact",
        "svd": "swap by SVD, else merge",
        "merge": "merge",
        "bake": "bake",
        "refuse": "refused",
    }
    lines = [
        "# Every PEFT method",
        "",
        "Written by `python -m edgepeft.adapters.page`; a test checks that it is current. Methods are those of peft 0.21.",
        "",
        "- *swap*: beside the base, exchanged at run time. *Exact* means a closed form, right up to float32 rounding.",
        "- *by SVD*: the smallest rank whose relative residual is at most 1e-4, or `max_rank` with the residual reported.",
        "  Where two factors would hold more numbers than the weights they change, the adapter is merged instead.",
        "- *merge*: folded into the weights by `export --mode merge`; every method that can be swapped can be merged too, but",
        "  for those whose edit is a Prefix.",
        "- *over language models*: a Prefix is key/value states that stand before the sequence of a causal language model, see",
        "  [generation.md](generation.md#states-before-the-sequence). Reading virtual tokens takes one run of the base.",
        "- *bake*: traced by `export --mode bake` as PEFT runs it, unmerged: one model for each adapter, for models that read",
        "  tokens once (classification, features, fill-mask).",
        "- *without torch*: `edgepeft add` needs only the checkpoint and the bundle. The others are run in PEFT over the base",
        "  once, at export: an adapted layer that is not a linear map of its input is refused, whatever its method.",
        "",
        "Every row that ships is built, given random trained numbers and compared with PEFT on a BERT classifier in",
        "`tests/model/test_methods.py` and on a Llama, through its cache, in `tests/model/test_methods_llama.py` (BEFT is refused",
        "there: Llama's linear layers have no bias to replace); that the others are refused by name and reason is tested too.",
        "What stands before the sequence is compared over Llama, GPT-2 and OPT in `tests/model/test_prefix.py`.",
        "Other layers (Conv1D, convolutions, embeddings) and models (ViT, Whisper, CLIP, GPT-2, a network of convolutions) are in",
        "`tests/model/test_model_kinds.py`, encoder-decoders (T5, BART) in `tests/model/test_seq2seq.py`.",
        "",
        "| PEFT type | method | ships as | edits | without torch | why not better |",
        "|---|---|---|---|---|---|",
    ]
    order = list(ships)
    for m in sorted(METHODS.values(), key=lambda m: (0.5 if m.virtual else order.index(m.mode), m.peft_type)):
        torchless = "yes" if m.without_torch else "-"
        how = f"swap, exact, over language models; else {ships[m.mode]}" if m.virtual else ships[m.mode]
        cells = (m.peft_type, m.title, how, m.edits or "-", torchless, m.reason or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(methods_page())
