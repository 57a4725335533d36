"""``edgepeft inspect``: what a bundle or an adapter holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup
from cloup import option

from ..errors import InputError
from .embedding_text import embedding_text
from .guarded import guarded
from .options import json_option
from .show import megabytes, print_json, table

if TYPE_CHECKING:
    from ..bundle import Head


@cloup.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@option("--schema", is_flag=True, help="Print the JSON Schema of edgepeft.json; needs no PATH.")
@option(
    "--base",
    metavar="MODEL|BUNDLE",
    help="What a PEFT folder was trained over: the adapter is lowered over it, and what that loses is measured.",
)
@json_option
@guarded
def inspect(path: Path | None, schema: bool, base: str | None, as_json: bool) -> None:
    """Show what a bundle or an adapter holds.

    PATH is a bundle folder (all of its files are verified), a PEFT folder (FOLDER#task=N for one of its tasks), or an
    .onnx or .onnx_adapter file that edgepeft exported. Of a PEFT folder it says how it will ship and at which sites; with
    --base that is measured.
    """
    from ..adapters.checkpoint import split_task
    from ..bundle import MANIFEST_NAME, json_schema

    if schema:
        print_json(json_schema())
    elif path is None:
        raise InputError("PATH is missing: give a bundle or an adapter (or --schema)")
    elif not (folder := Path(split_task(path)[0])).exists():
        raise InputError(f"{path} does not exist")
    elif path.suffix == ".onnx":
        _adapter_file(path, as_json)
    elif path.suffix == ".onnx_adapter":
        _onnx_adapter(path, as_json)
    elif (folder / "adapter_config.json").is_file() and not (folder / MANIFEST_NAME).is_file():
        _checkpoint(path, base, as_json)
    elif path.is_dir():
        _bundle(path, as_json)
    else:
        raise InputError(
            f"{path} is neither a bundle ({MANIFEST_NAME}), a PEFT checkpoint (adapter_config.json) nor an exported "
            ".onnx or .onnx_adapter file"
        )


def _bundle(path: Path, as_json: bool) -> None:
    from ..bundle import Bundle, read_bundle, rereading

    @rereading
    def verified(path: Path) -> Bundle:
        bundle = read_bundle(path)
        bundle.verify()
        return bundle

    bundle = verified(path)
    manifest = bundle.manifest
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    base = manifest.base
    slots = manifest.slots
    sites = sum(len(slot.sites) for slot in slots.factored)
    facts = {
        "bundle": f"{path}, {manifest.mode}, {megabytes(bundle.size())} on disk, all {len(manifest.files)} files verified",
        "task": manifest.task + (f" ({', '.join(manifest.labels)})" if manifest.labels and not base.fresh else ""),
        **({"tasks": ", ".join(manifest.tasks)} if manifest.tasks else {}),
        "base": f"{base.source} ({base.architecture}, {base.parameters:,} parameters)",
        "captured": f"{base.captured_by}, identity {base.identity[:16]}…",
        "slots": f"{len(slots.factored)} at {sites} sites, {len(slots.overrides)} replaceable parameters",
    }
    if manifest.max_length is not None:
        facts["longest input"] = f"{manifest.max_length} tokens"
    if manifest.embedding is not None:
        facts["embedding"] = embedding_text(manifest.embedding)
    if manifest.merged is not None:
        facts["merged"] = manifest.merged
        del facts["slots"]
    if base.fresh:
        facts["untrained"] = f"{', '.join(base.fresh)}: adapters bring their own"
    _facts(facts)
    table(
        "Variants",
        ("variant", "graph and weights", "a device gets", "weights quantized", "recipe"),
        [
            (
                n,
                megabytes(bundle.size(bundle.variant_files(n))),
                megabytes(bundle.size(manifest.deployed(n))),
                f"{v.quantized_share:.1%}",
                v.recipe,
            )
            for n, v in manifest.variants.items()
        ],
    )
    if manifest.adapters:
        from ..bundle import head_of

        heads = {name: head_of(manifest, name) for name in manifest.adapters}
        table(
            "Adapters",
            (
                "adapter",
                "task",
                "method",
                ".onnx_adapter",
                "largest slot rank",
                "labels",
                "meaning",
                "scalable",
                "mixed batches",
            ),
            [
                (
                    n,
                    heads[n].task,
                    a.method,
                    megabytes(a.bytes),
                    max(a.ranks.values(), default=0),
                    ", ".join(heads[n].labels or ()) or None,
                    _meaning(heads[n]),
                    a.scalable,
                    a.per_row,
                )
                for n, a in manifest.adapters.items()
            ],
        )
        for name, entry in manifest.adapters.items():
            before = f", {entry.prefix_length} states before the sequence" if entry.prefix_length else ""
            own = f", with its own {', '.join(entry.text)}" if entry.text else ""
            own += f"; embeds by {embedding_text(entry.embedding)}" if entry.embedding is not None else ""
            own += f"; refitted to {', '.join(entry.refits)}" if entry.refits else ""
            click.echo(f"{name} from {entry.source}{before}{own}")


def _facts(facts: dict[str, str]) -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {value}")
    click.echo()


def _adapter_file(path: Path, as_json: bool) -> None:
    from ..adapters.files import contract_of, read_adapter_onnx

    adapter = read_adapter_onnx(path)
    contract_of(adapter, path)
    shapes = {name: list(array.shape) for name, array in sorted(adapter.tensors.items())}
    if as_json:
        print_json({**adapter.metadata, "tensors": shapes})
        return
    _facts(
        {
            "adapter": f"{path}, {adapter.metadata['method']}, {megabytes(path.stat().st_size)}",
            "labels": ", ".join(adapter.metadata.get("labels") or ()) or "–",
            "base": f"identity {adapter.metadata['base_identity'][:16]}…, slots {adapter.metadata['slots_hash'][:16]}…",
        }
    )
    table("Slot tensors", ("tensor", "shape"), list(_shapes(shapes)))


def _onnx_adapter(path: Path, as_json: bool) -> None:
    from ..adapters.files import read_onnx_adapter

    tensors, model_version, adapter_version = read_onnx_adapter(path)
    shapes = {name: list(array.shape) for name, array in sorted(tensors.items())}
    if as_json:
        print_json({"model_version": model_version, "adapter_version": adapter_version, "tensors": shapes})
        return
    _facts(
        {
            "adapter": f"{path}, {megabytes(path.stat().st_size)}",
            "base": f"model version {model_version} (from the base's identity), adapter version {adapter_version} (from its slots)",
        }
    )
    table("Slot tensors", ("tensor", "shape"), list(_shapes(shapes)))


def _shapes(shapes: dict[str, list[int]]) -> list[tuple[str, str]]:
    return [(name, " × ".join(map(str, shape))) for name, shape in shapes.items()]


#: What changes how a LoRA checkpoint is read, beside rank and alpha.
_OPTIONS = ("use_dora", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern", "bias", "modules_to_save",
            "init_lora_weights", "target_parameters", "layer_replication")  # fmt: skip


def _checkpoint(path: Path, base: str | None, as_json: bool) -> None:
    from ..adapters.checkpoint import read_checkpoint
    from ..pipeline import describe

    checkpoint = read_checkpoint(path)
    plan = describe(checkpoint, base)
    shapes = {name: list(array.shape) for name, array in sorted(checkpoint.tensors.items())}
    if as_json:
        print_json(
            {
                "plan": plan.as_dict(),
                "config": dict(checkpoint.config),
                "record": dict(checkpoint.record),
                "tensors": shapes,
            }
        )
        return
    config, record = checkpoint.config, checkpoint.record
    numbers = sum(array.size for array in checkpoint.tensors.values())
    facts = {
        "checkpoint": f"{path}, {checkpoint.peft_type} for {config.get('task_type')}",
        "base": str(config.get("base_model_name_or_path")),
        "size": f"rank {config.get('r')}, alpha {config.get('lora_alpha')}, {len(shapes)} tensors, {numbers:,} numbers",
        "options": ", ".join(f"{key}={config[key]}" for key in _OPTIONS if config.get(key)) or "–",
    }
    facts["ships as"] = f"{plan.mode} ({plan.exactness})" if plan.mode != "refuse" else "not at all"
    if plan.reason:
        facts["because"] = plan.reason
    if plan.notes:
        facts["note"] = "; ".join(plan.notes)
    if plan.measured and plan.mode == "swap":
        facts["adds"] = megabytes(plan.bytes)
    if plan.overrides:
        facts["replaces"] = ", ".join(plan.overrides)
    if record:
        facts["labels"] = ", ".join(record.get("labels") or ()) or "–"
        facts["trained on"] = f"base identity {str(record.get('base_identity'))[:16]}…"
    _facts(facts)
    if plan.sites:
        table("Sites", ("site", "edits", "rank"), [(s.site, s.edits, s.rank) for s in plan.sites])
    else:  # what there is to go by; with sites they are many and say nothing more (--json has them)
        table("Tensors", ("tensor", "shape"), _shapes(shapes))
    if not plan.measured and plan.mode != "refuse":
        click.echo("\nLower it over its base for sizes and residuals: --base MODEL, or --base BUNDLE")


def _meaning(head: Head) -> str | None:
    """What the outputs of a head are, and what makes scores of them; nothing for the usual: one label, a softmax."""
    width = len(head.labels or ())
    kind, function = (head.kind(width), head.function(width)) if width else ("", "softmax")
    return None if not width or function == "softmax" else f"{kind.removesuffix('_classification')}, {function}"
