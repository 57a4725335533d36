"""How much faster drafts by prompt lookup (``draft="prompt"``) make decoding, and whether the tokens stay the same.

    python benchmarks/speculation.py bundle --variant q4 --adapter support --threads 1

Greedy answers to prompts of four kinds, made from public texts: summarising, editing and extracting, whose answers repeat the
prompt, and free text, whose answers do not. Each prompt is answered with and without drafts in turn, in changing order; the ratio
is that of tokens a second after the first token, in the same turn. The median over the turns counts for a prompt, and the
geometric mean over prompts is printed with the range.
"""

from __future__ import annotations

import edgepeft  # noqa: F401  # before ONNX Runtime: switches its telemetry off

# isort: split

import json
from math import exp, log
from pathlib import Path
from statistics import mean, median

import click

from edgepeft import runtime
from edgepeft.demo import assets

TASKS = {
    "summarise": "Summarize the following text in a few sentences, in its own words:\n\n{text}",
    "edit": "Correct the spelling of the following text and give back the whole text:\n\n{text}",
    "extract": "Quote the most important sentences of the following text, word by word:\n\n{text}",
}
FREE = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain to a child why the sky is blue and the sunset red.",
    "Give me ideas for a weekend trip with two dogs.",
    "Write a poem about the first day of winter.",
)


def passages(count: int, words: int) -> list[str]:
    """Passages of Python's reference and of the novels, in turn."""
    rows = (assets.pydoc_topics() / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    topics = [json.loads(row)["text"] for row in rows]
    technical = " ".join(topics).split()
    novels = next(iter(sorted(assets.austen().glob("*.txt")))).read_text(encoding="utf-8").split()
    return [
        " ".join((technical, novels)[number % 2][start : start + words])
        for number in range(count)
        for start in [4000 + 3000 * number]
    ]


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", default="q4")
@click.option("--adapter", default=None)
@click.option("--threads", type=int, default=1)
@click.option("--passages", "count", type=int, default=4, help="Texts for each task.")
@click.option("--words", type=int, default=120, help="Words of each text.")
@click.option("--tokens", type=int, default=128, help="Most tokens of an answer.")
@click.option("--rounds", type=int, default=3)
def main(
    bundle: Path, variant: str, adapter: str | None, threads: int, count: int, words: int, tokens: int, rounds: int
) -> None:
    model = runtime.open(bundle, variant=variant, threads=threads).adapter(adapter)
    texts = passages(count, words)
    prompts = {name: [task.format(text=text) for text in texts] for name, task in TASKS.items()} | {"free": list(FREE)}
    model.generate(FREE[0], max_new_tokens=16, draft="prompt")
    total = different = 0
    for kind, asked in prompts.items():
        ratios, drafted, accepted, answered = [], 0, 0, 0
        for prompt in asked:
            turns = []
            for number in range(rounds):
                found = {}
                for draft in ((None, "prompt"), ("prompt", None))[number % 2]:
                    found[draft] = model.generate(prompt, max_new_tokens=tokens, temperature=0, draft=draft)
                plain, fast = found[None], found["prompt"]
                if plain.tokens_per_second is None or fast.tokens_per_second is None:
                    continue
                turns.append(fast.tokens_per_second / plain.tokens_per_second)
                if number == 0:
                    total += len(plain.tokens)
                    answered += len(plain.tokens)
                    drafted, accepted = drafted + fast.drafted_tokens, accepted + fast.accepted_tokens
                    different += plain.tokens != fast.tokens
            if turns:
                ratios.append(median(turns))
        print(
            f"{kind:10s} {exp(mean(map(log, ratios))):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), {accepted} of {drafted} "
            f"drafted tokens right, of {answered} in all",
            flush=True,
        )
    curve = model.generator.costs.ratios()
    print("a run over 2, 3, 4, 6, 8, 12, 16 tokens costs", *(f"{curve[n]:.2f}x" for n in (2, 3, 4, 6, 8, 12, 16)))
    print(f"{total} greedy tokens, answers that differ: {different}")


if __name__ == "__main__":
    main()
