"""``export --variant``: straight to the variants that are asked for, block by block where the base can be read so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..adapters.checkpoint import read_checkpoint
from ..adapters.read import layers_of
from ..base.remote_code import trusting
from ..base.streamed.load import NotStreamedError, load_in_place
from ..base.task import task_of
from ..bundle import LOCK_TIMEOUT, replacing, scratch
from ..errors import InputError
from ..quantize import RECIPES
from ..quantize.recipes import WHOLE
from ..validate.streamed import why_not
from ._export import export
from ._exported import Announce, Exported
from ._manifest import check_asked, check_target_folder
from ._plan import plan_export, streams_whole
from ._quantize import quantize
from ._remove import remove
from ._streamed import Asked, export_streamed


def data_free() -> tuple[str, ...]:
    """The variants that :func:`export_variants` makes: fp32, and those of recipes that need no data."""
    return (WHOLE, *(name for name, each in RECIPES.items() if each.in_graph is not None))


def export_variants(
    variants: Sequence[str],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> Exported:
    """Export a base and its adapters in certain precisions only. fp32 is in the bundle where it is asked for.

    A language model with safetensors files that mobius builds is read tensor by tensor: each is turned, packed and rounded as it is
    written, and PyTorch's side of the comparison runs one layer at a time. Memory then grows with the largest layer and not
    with the model, and nothing but the result is written. Any other base is exported in fp32 beside ``out`` and quantized
    there. Either way each variant has the same bytes.

    Args:
        variants: The precisions: ``"fp32"``, ``"int8"``, ``"q8"``, ``"q4"`` (rounded to nearest; what is fitted to texts is
            :func:`~edgepeft.pipeline.quantize`'s).
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The bundle's folder.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns.

    Raises:
        InputError: A variant is unknown or needs data, or a file of the checkpoint is missing or damaged.
        ParityError: A variant does not compute what PyTorch computes with the same numbers; nothing is written.
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` raises.

    Example:
        >>> export_variants(["q4"], "org/model", {"support": "./support-lora"}, "bundle").bundles[0].manifest.variants.keys()
        dict_keys(['q4'])
    """
    out = Path(out)
    wanted = tuple(dict.fromkeys(variants))
    other = next((name for name in wanted if name not in data_free()), None)
    if other is not None or not wanted:
        raise InputError(
            f"--variant takes {', '.join(data_free())}, found {other or 'none'}"
            + (
                f"; {other} needs texts: export without it, then `edgepeft quantize --variant {other}`"
                if other in RECIPES
                else ""
            )
        )
    mode: Literal["swap", "merge", "bake"] = options.get("mode", "swap")
    check_asked(adapters, mode, out)
    with trusting(options.get("trust_remote_code", False)):
        try:
            asked = _asked(str(model), adapters, wanted, options)
            _plan(wanted, model, adapters, out, mode, announce, streamed=True)
            given = load_in_place(model, announce=announce)
            return export_streamed(asked, given, out, lock_timeout, announce)
        except NotStreamedError as error:
            announce(f"{model} is held in memory: {error}")
    if wanted == (WHOLE,):
        return export(model, adapters, out, lock_timeout=lock_timeout, announce=announce, **options)
    _plan(wanted, model, adapters, out, mode, announce, streamed=False)
    return _two_steps(wanted, model, adapters, out, lock_timeout, announce, options)


def export_whole(
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: str | Path,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    announce: Announce = lambda message: None,
    **options: Any,
) -> Exported:
    """:func:`~edgepeft.pipeline.export`, block by block where that saves memory and the base can be read so: the same bytes.

    Args:
        model: The base: a folder or a Hugging Face id.
        adapters: PEFT checkpoints by the names that they get.
        out: The bundle's folder.
        lock_timeout: Seconds to wait for another process that changes the bundle.
        announce: Is called with a line of text for each step.
        options: Further options of :func:`edgepeft.pipeline.export`.

    Returns:
        What :func:`~edgepeft.pipeline.export` returns.

    Raises:
        EdgepeftError: Whatever :func:`~edgepeft.pipeline.export` raises.

    Example:
        >>> done = export_whole("HuggingFaceTB/SmolLM2-135M", {"support": "support-lora"}, "bundle")  # doctest: +SKIP
    """
    plain = options.get("mode", "swap") == "swap" and not options.get("onnx") and not options.get("heads")
    if plain and options.get("task") in {None, "text-generation"} and streams_whole(str(model)):
        return export_variants((WHOLE,), model, adapters, out, lock_timeout=lock_timeout, announce=announce, **options)
    return export(model, adapters, out, lock_timeout=lock_timeout, announce=announce, **options)


def _plan(
    variants: tuple[str, ...],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: Path,
    mode: Literal["swap", "merge", "bake"],
    announce: Announce,
    *,
    streamed: bool,
) -> None:
    """Say what the export takes; :class:`InputError` where that is more than there is."""
    try:
        plan = plan_export(model, adapters, out, mode=mode, variants=variants, streamed=streamed)
    except InputError as error:
        announce(f"what it takes cannot be told: {error}")
        return
    announce(str(plan))
    plan.require_room(out)


def _asked(
    source: str, adapters: Mapping[str, str | Path], variants: tuple[str, ...], options: Mapping[str, Any]
) -> Asked:
    """The same, where a base can be streamed for it; :class:`NotStreamedError` where not."""
    if options.get("mode", "swap") != "swap":
        raise NotStreamedError(f"--mode {options['mode']} changes its weights")
    if options.get("onnx") is not None:
        raise NotStreamedError("an ONNX file of it is given")
    checkpoints = {name: read_checkpoint(each) for name, each in adapters.items()}
    tasks = {task_of(each.config.get("task_type")) for each in checkpoints.values()} - {None}
    task = options.get("task") or (_task_of_config(source) if not tasks else None)
    if (task or "text-generation") != "text-generation" or tasks - {"text-generation"} or options.get("heads"):
        raise NotStreamedError("only language models that continue texts are read block by block")
    for name, checkpoint in checkpoints.items():
        reason = "it repeats layers" if layers_of(checkpoint) else why_not(checkpoint)
        if reason is not None:
            raise NotStreamedError(f"adapter {name}: {reason}")
    return Asked(
        source,
        checkpoints,
        variants,
        options.get("slots", "adapters"),
        options.get("max_length"),
        options.get("max_rank"),
        options.get("force", False),
    )


def _task_of_config(source: str) -> str:
    from transformers import AutoConfig

    from ..base.load import check_source
    from ..base.remote_code import trusted
    from ..base.sources import model_source
    from ..base.task import infer_task

    check_source(source)
    try:
        return infer_task(AutoConfig.from_pretrained(model_source(source), trust_remote_code=trusted()), None)
    except (OSError, ValueError, KeyError) as error:
        raise NotStreamedError("its config.json cannot be read") from error  # the other way says what is wrong with it


def _two_steps(
    variants: tuple[str, ...],
    model: str | Path,
    adapters: Mapping[str, str | Path],
    out: Path,
    lock_timeout: float,
    announce: Announce,
    options: Mapping[str, Any],
) -> Exported:
    """Export in fp32 beside ``out``, quantize there, and keep what is asked for."""
    single = options.get("mode", "swap") == "swap" or len(adapters) == 1
    if single:
        check_target_folder(out)
    with scratch(out) as folder:
        whole = folder / "bundle"
        exported = export(model, adapters, whole, announce=announce, **options)
        made = []
        for bundle in exported.bundles:
            for variant in variants:
                if variant != WHOLE:
                    method = "rtn" if RECIPES[variant].fitted is not None else None
                    quantize(bundle.path, variant, method=method, measure=False, announce=announce)
            if WHOLE not in variants:
                remove(bundle.path, variant=WHOLE)
            target = out / bundle.path.relative_to(whole)
            with replacing(target, keep=False, lock_timeout=lock_timeout) as staging:
                shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
            made.append(target)
    from ..bundle import read_bundle

    return replace(exported, bundles=tuple(read_bundle(path) for path in made))
