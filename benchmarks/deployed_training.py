"""Measures training against the rounded weights that ship (`--deploy-variant`), on SmolLM2-135M and the demo's `support`.

    python benchmarks/deployed_training.py OUT [--variant q4] [--as-shipped] [--epochs 2] [--max-steps N] [--threads 1]
        [--distill-epochs 4]

Exports the base with slots at every linear layer, adds the variant, trains `support` on fp32 and on the variant with the demo's
settings, and measures both adapters on both: held-out nats a token and perplexity, and the share of what the variant costs the
plain adapter that training on it wins back, and that distilling the plain adapter on it does (`--distill`). The pinned weights
are de-quantized from 4 bits, which `q4` would find again, so uniform noise of one grid step is added (as in
benchmarks/quantize.py) unless --as-shipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgepeft.demo import assets
from edgepeft.demo.language import SETTINGS
from edgepeft.pipeline import export, quantize
from edgepeft.train import train_language_adapter

sys.path.insert(0, str(Path(__file__).parent))
from quantize import off_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--as-shipped", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--epochs", type=int, default=SETTINGS["support"]["epochs"])
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--distill-epochs", type=int, default=4)
    arguments = parser.parse_args()
    out: Path = arguments.out
    base = assets.smollm2()
    if not arguments.as_shipped:
        base = out / "base" if (out / "base").is_dir() else off_grid(base, out / "base")
    bundle = out / "bundle"
    if not (bundle / "edgepeft.json").is_file():
        export(base, {}, bundle, slots="all-linear")
    if not (bundle / "onnx" / f"model_{arguments.variant}.onnx").is_file():
        quantize(bundle, arguments.variant, measure=False)
    options: dict[str, Any] = {
        **SETTINGS["support"],
        "epochs": arguments.epochs,
        "max_steps": arguments.max_steps,
        "threads": arguments.threads,
        "progress": False,
    }
    data = assets.chatterbot() / "support.jsonl"
    plain = train_language_adapter(base, data, out / "plain", **options)
    deployed = train_language_adapter(
        base, data, out / "deployed", deploy_variant=arguments.variant, bundle=bundle, **options
    )
    # The plain adapter on the variant: one step of next to no length from it, whose scores before are its own.
    crossed = train_language_adapter(
        base,
        data,
        out / "crossed",
        start=out / "plain",
        deploy_variant=arguments.variant,
        bundle=bundle,
        **{**options, "epochs": 1, "max_steps": 1, "learning_rate": 1e-12},
    )
    distilled = train_language_adapter(
        base,
        data,
        out / "distilled",
        start=out / "plain",
        deploy_variant=arguments.variant,
        bundle=bundle,
        distill=True,
        **{**options, "epochs": arguments.distill_epochs, "max_steps": None, "patience": None},
    )
    assert deployed.deployed is not None
    assert distilled.deployed is not None
    rows = {
        ("no adapter", "fp32"): plain.before,
        ("no adapter", arguments.variant): deployed.before,
        ("trained on fp32", "fp32"): plain.after,
        ("trained on fp32", arguments.variant): crossed.before,
        (f"trained on {arguments.variant}", "fp32"): deployed.deployed.fp32_after,
        (f"trained on {arguments.variant}", arguments.variant): deployed.after,
        (f"distilled on {arguments.variant}", "fp32"): distilled.deployed.fp32_after,
        (f"distilled on {arguments.variant}", arguments.variant): distilled.after,
    }
    for (adapter, variant), score in rows.items():
        print(f"{adapter} | on {variant} | perplexity {score.perplexity:.3f} | {score.nll:.4f} nats a token")
    cost = crossed.before.perplexity - plain.after.perplexity
    for what, run in (("training", deployed), ("distilling", distilled)):
        won = crossed.before.perplexity - run.after.perplexity
        assert run.deployed is not None
        print(
            f"{arguments.variant} costs the plain adapter {cost:+.3f} of perplexity; {what} on it wins back {won:+.3f} "
            f"({won / cost:.0%}); on fp32 that adapter has {run.deployed.fp32_after.perplexity - plain.after.perplexity:+.3f}"
        )


if __name__ == "__main__":
    main()
