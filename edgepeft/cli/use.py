"""Commands that read bundles: run, inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import bundle_argument, guarded, json_option, megabytes, print_json, table


@click.command()
@bundle_argument
@click.argument("text", nargs=-1)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path),
    help="Texts to run: .csv, .tsv or .jsonl, or one text a line (.txt, - for standard input).",
)
@click.option("--column", default="text", show_default=True, help="The column of --file that holds the text.")
@click.option("--adapter", help="The adapter to use; the base without one.")
@click.option("--scale", default=1.0, show_default=True, help="Multiply the adapter's low-rank part.")
@click.option("--variant", help="fp32 by default.")
@click.option("--threads", type=int, help="ONNX Runtime's intra-op threads.")
@json_option
@guarded
def run(
    bundle: Path,
    text: tuple[str, ...],
    file: Path | None,
    column: str,
    adapter: str | None,
    scale: float,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run texts through a bundle, with an adapter or without."""
    from .. import runtime

    texts = [*text, *(_read(file, column) if file is not None else ())]
    if not texts:
        raise InputError("no text: give one as an argument, or a file with --file")
    opened = runtime.open(bundle, variant=variant, threads=threads)
    if adapter is not None and opened.manifest.mode == "merge":
        if adapter != opened.manifest.merged:
            raise InputError(f"{bundle} is merged with {opened.manifest.merged!r}; it has no adapter {adapter!r}")
    else:
        opened.use(adapter, scale=scale)
    results: list[dict[str, Any]] = []
    for start in range(0, len(texts), 32):
        results.extend(opened.run(texts[start : start + 32]))
    if as_json:
        print_json([{"text": t, "adapter": adapter, **result} for t, result in zip(texts, results, strict=True)])
        return
    for t, result in zip(texts, results, strict=True):
        click.echo(f"{_short(result)}\t{t}")


def _read(file: Path, column: str) -> list[str]:
    from ..data import read_examples

    if str(file) == "-":
        return [line for line in sys.stdin.read().splitlines() if line.strip()]
    if file.suffix.lower() == ".txt":
        try:
            return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {file}: {error}") from error
    return list(read_examples(file, text=column, label=None).texts)


def _short(result: dict[str, Any]) -> str:
    if "label" in result:
        return f"{result['label']} {result['score']:.3f}"
    if "tokens" in result:
        return " ".join(f"{t['token']}/{t['label']}" for t in result["tokens"])
    if "fills" in result:
        return " ".join(f"{f['token']} {f['score']:.3f}" for f in result["fills"])
    vector = result["embedding"]
    return "[" + ", ".join(f"{x:.4f}" for x in vector[:4]) + f", … {len(vector)} numbers]"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--schema", is_flag=True, help="Print the JSON Schema of edgepeft.json instead.")
@json_option
@guarded
def inspect(path: Path, schema: bool, as_json: bool) -> None:
    """Show what a bundle or an adapter holds (a bundle folder, a PEFT folder, an exported .onnx adapter)."""
    from ..bundle import MANIFEST_NAME, json_schema

    if schema:
        print_json(json_schema())
    elif (path / MANIFEST_NAME).is_file():
        _bundle(path, as_json)
    elif path.suffix == ".onnx":
        _adapter_file(path, as_json)
    elif (path / "adapter_config.json").is_file():
        _checkpoint(path, as_json)
    else:
        raise InputError(
            f"{path} is neither a bundle ({MANIFEST_NAME}), a PEFT checkpoint (adapter_config.json) nor an exported .onnx adapter"
        )


def _bundle(path: Path, as_json: bool) -> None:
    from ..bundle import read_bundle

    bundle = read_bundle(path)
    bundle.verify()
    manifest = bundle.manifest
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    base = manifest.base
    click.echo(
        f"{path}: {manifest.task}, {manifest.mode}, {megabytes(bundle.size())}, all {len(manifest.files)} files verified"
    )
    click.echo(
        f"base {base.source} ({base.architecture}, {base.parameters:,} parameters, {base.captured_by}), identity {base.identity[:16]}…"
    )
    sites = sum(len(slot.parts) for slot in manifest.slots.linear)
    click.echo(
        f"slots: {len(manifest.slots.linear)} at {sites} sites, {len(manifest.slots.overrides)} replaceable parameters"
    )
    table(
        "Variants",
        ("variant", "size", "weights quantized", "recipe"),
        [
            (n, megabytes(bundle.size(bundle.variant_files(n))), f"{v.quantized_share:.1%}", v.recipe)
            for n, v in manifest.variants.items()
        ],
    )
    if manifest.adapters:
        table(
            "Adapters",
            ("adapter", "method", "size", "rank", "labels", "scalable", "per row", "source"),
            [
                (
                    n,
                    a.method,
                    megabytes(a.bytes),
                    max(a.ranks.values(), default=0),
                    ", ".join(a.labels or ()) or None,
                    a.scalable,
                    a.per_row,
                    a.source,
                )
                for n, a in manifest.adapters.items()
            ],
        )


def _adapter_file(path: Path, as_json: bool) -> None:
    from ..adapters.files import read_adapter_onnx

    found = read_adapter_onnx(path)
    shapes = {name: list(array.shape) for name, array in found.tensors.items()}
    if as_json:
        print_json({**found.metadata, "tensors": shapes})
        return
    click.echo(f"{path}: {found.metadata['method']}, base identity {found.metadata['base_identity'][:16]}…")
    table("Slot tensors", ("tensor", "shape"), list(shapes.items()))


def _checkpoint(path: Path, as_json: bool) -> None:
    from ..adapters.checkpoint import read_checkpoint

    found = read_checkpoint(path)
    shapes = {name: list(array.shape) for name, array in found.tensors.items()}
    if as_json:
        print_json({"config": dict(found.config), "record": dict(found.record), "tensors": shapes})
        return
    config = found.config
    click.echo(f"{path}: {found.peft_type} for {config.get('task_type')}, base {config.get('base_model_name_or_path')}")
    click.echo(
        f"rank {config.get('r')}, alpha {config.get('lora_alpha')}, {len(shapes)} tensors, {sum(a.size for a in found.tensors.values()):,} numbers"
    )
    options = {
        k: v
        for k, v in config.items()
        if v
        and k
        in {
            "use_dora",
            "use_rslora",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "bias",
            "modules_to_save",
            "init_lora_weights",
        }
    }
    click.echo("options: " + ", ".join(f"{k}={v}" for k, v in options.items()))
    if found.record:
        click.echo(
            f"trained by edgepeft: labels {', '.join(found.record.get('labels') or ())}; base identity {str(found.record.get('base_identity'))[:16]}…"
        )
    table("Tensors", ("tensor", "shape"), list(shapes.items()))
