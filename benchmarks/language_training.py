"""Trains the demo's language adapters on SmolLM2-135M and prints held-out perplexity before and after.

    python benchmarks/language_training.py OUT [support|austen …] [--threads N]

Writes the adapters to OUT/support and OUT/austen. Fetches the pinned model and texts once (96 MB).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgepeft.demo.language import SETTINGS, train_language_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SETTINGS))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print("| adapter | held-out perplexity before | after | change, nats a token | held out | trained on | minutes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.names or SETTINGS:
        done = train_language_demo(name, arguments.out / name, threads=arguments.threads)
        before, after, change = done.before, done.after, done.change
        print(
            f"| {name} | {before.perplexity:.2f} ± {before.standard_error:.2f} | {after.perplexity:.2f} ± "
            f"{after.standard_error:.2f} | {change.nll:.3f} ± {change.standard_error:.3f} | {after.tokens:,} tokens | "
            f"{done.train_tokens:,} tokens | {done.seconds / 60:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
