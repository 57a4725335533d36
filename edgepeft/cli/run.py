"""``edgepeft run``: texts through a bundle and an adapter."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import cloup
from cloup import option, option_group

from ..errors import InputError
from ..executors import Device
from .guarded import guarded
from .options import PATH, bundle_argument, json_option, threads_option
from .renamed import renamed_option
from .show import bar, print_json, warn
from .speech import SPEECH, check_audio, check_speech, run_sounds, speech_options
from .text_generation import generation_options, refuse_generation, run_prompts
from .values import parse_weights
from .verbosity import quiet

if TYPE_CHECKING:
    from ..bundle import Verify
    from ..runtime.embedding import EmbedOptions


#: From how many texts on progress is told.
_TOLD = 256


@cloup.command()
@bundle_argument
@click.argument("text", nargs=-1)
@option_group(
    "Texts",
    option(
        "--file",
        type=PATH,
        help="Texts: .csv, .tsv, .jsonl, .json, .parquet, or one text a line (.txt; - for standard input).",
    ),
    option("--text", "column", default="text", metavar="COLUMN", help="Column of --file that holds the text."),
    option("--pair", metavar="COLUMN", help="Column of --file that holds a second text, for pairs."),
)
@option_group(
    "Model",
    option(
        "--adapter",
        metavar="NAME",
        show_default="none, the base",
        help="The adapter to use, or a blend: a=0.7,b=0.3.",
    ),
    option("--head", metavar="NAME", help="For a blend: the adapter whose head it takes."),
    option("--scale", default=1.0, metavar="X", help="Multiply the adapter's low-rank part."),
    option(
        "--threshold",
        type=click.FloatRange(0, 1),
        default=0.5,
        metavar="P",
        help="For heads of several labels a text: the probability above which a label is chosen.",
    ),
    option("--variant", metavar="NAME", show_default="the bundle's preferred", help="The variant of the base to run."),
    option(
        "--device",
        type=click.Choice(get_args(Device)),
        default="cpu",
        help="What computes it: cpu, or this machine's GPU through ONNX Runtime's WebGPU plugin (edgepeft[webgpu]).",
    ),
    option(
        "--verify",
        type=click.Choice(("always", "changed", "never")),  # bundle.Verify, which a look at --help need not import
        default="changed",
        help="Hash the bundle's files: always, those that changed since they were last hashed, or never.",
    ),
)
@option_group(
    "Embeddings",
    option(
        "--prompt-name", metavar="NAME", show_default="the model's", help="The model's prompt to put before each text."
    ),
    option("--dim", type=click.IntRange(min=1), metavar="N", help="Keep the first N numbers (Matryoshka models)."),
    option("--normalize", is_flag=True, help="Bring embeddings to length 1, after the cut."),
)
@renamed_option("--column", "--text", "old_column")
@generation_options
@speech_options
@threads_option
@json_option
@guarded
def run(
    bundle: Path,
    text: tuple[str, ...],
    file: Path | None,
    column: str,
    old_column: str | None,
    pair: str | None,
    adapter: str | None,
    head: str | None,
    scale: float,
    threshold: float,
    prompt_name: str | None,
    dim: int | None,
    normalize: bool,
    variant: str | None,
    threads: int | None,
    device: Device,
    verify: Verify,
    as_json: bool,
    **generation: Any,
) -> None:
    """Run texts through a bundle and an adapter.

    A causal language model generates: TEXT is what to answer, through the model's chat template where it has one. An
    encoder-decoder writes what TEXT becomes. The text is printed as it is generated, and the time that it took on standard error. A
    model of speech writes down the files of --audio.
    """
    from .. import runtime
    from ..bundle import read_bundle
    from ..data import read_texts

    speech = {name: generation.pop(name) for name in SPEECH}
    from_file = read_texts(file, text=old_column or column, pair=pair) if file is not None else []
    texts: list[Any] = [*text, *generation["prompt"], *from_file]
    if not texts and not speech["audio"]:
        check_audio(speech)
        raise InputError("no text: give one as an argument, or a file with --file")
    chosen = parse_weights(adapter.split(",")) if adapter is not None and "=" in adapter else adapter
    check_speech(read_bundle(bundle).manifest.task, bundle, speech, texts, generation)
    variant = variant or _preferred(bundle, device)
    opened = runtime.open(bundle, variant=variant, threads=threads, verify=verify, device=device)
    opened.use(chosen, scale=scale, head=head)
    if opened.manifest.hears:
        run_sounds(opened, speech, generation, as_json)
        return
    if opened.manifest.writes:
        run_prompts(opened, texts, generation, as_json)
        return
    refuse_generation(generation, f"{bundle} is for {opened.manifest.task}, which takes texts as arguments")
    if opened.labels_are_untrained:
        warn(
            f"this base has no trained head of its own; choose an adapter: {', '.join(opened.adapters) or 'none here'}"
        )
    embedding: EmbedOptions = {}
    if prompt_name is not None:
        embedding["prompt_name"] = prompt_name
    if dim is not None:
        embedding["dim"] = dim
    if normalize:
        embedding["normalize"] = True
    results: list[dict[str, Any]] = []
    with bar() if len(texts) > _TOLD else nullcontext() as tell:
        for start in range(0, len(texts), 32):
            results.extend(opened.run(texts[start : start + 32], threshold=threshold, **embedding))
            if tell is not None:
                tell(len(results), len(texts), "texts")
    if cut := opened.truncated(texts, **embedding):
        warn(
            f"{len(cut)} of {len(texts)} texts were cut to {opened.longest_text} tokens, the first is text {cut[0] + 1}"
        )
    if as_json:
        print_json([{**_given(t), "adapter": adapter, **result} for t, result in zip(texts, results, strict=True)])
        return
    for t, result in zip(texts, results, strict=True):
        click.echo(f"{_short(result)}\t{_one_line(t)}")


def _preferred(bundle: Path, device: Device) -> str:
    """The variant that the bundle prefers, or that a GPU computes best; where there are several, which one that is is told."""
    from ..bundle import read_bundle
    from ..quantize.recipes import preferred_on_gpu, preferred_variant

    manifest = read_bundle(bundle).manifest
    if device == "cpu":
        variant = preferred_variant(manifest.variants, writes=manifest.decodes)
    else:
        from ..runtime.gpu import computes_halves

        variant = preferred_on_gpu(manifest.variants, halves=computes_halves())
    if len(manifest.variants) > 1 and not quiet():
        others = " or ".join(name for name in manifest.variants if name != variant)
        who = "this bundle prefers" if device == "cpu" else "suits a GPU best"
        click.echo(f"running {variant}, which {who}; --variant chooses {others}", err=True)
    return variant


def _one_line(text: str | tuple[str, str]) -> str:
    """A text as one field of a line: what would break it is written as Python and JSON write it."""
    whole = text if isinstance(text, str) else " ⏐ ".join(text)
    return whole.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")


def _given(text: str | tuple[str, str]) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else dict(zip(("text", "pair"), text, strict=True))


def _short(result: dict[str, Any]) -> str:
    if "values" in result:
        values = {name: f"{value:.4f}" for name, value in result["values"].items()}
        return (
            ", ".join(f"{name} {value}" for name, value in values.items())
            if len(values) > 1
            else f"{result['score']:.4f}"
        )
    if "labels" in result:
        return ", ".join(f"{name} {result['probabilities'][name]:.3f}" for name in result["labels"]) or "(none)"
    if "label" in result:
        return f"{result['label']} {result['score']:.3f}"
    if "answer" in result:
        return f"{result['answer']} {result['score']:.3f}"
    if "tokens" in result:
        return " ".join(f"{t['token']}/{t['label']}" for t in result["tokens"])
    if "fills" in result:
        return " ".join(f"{f['token']} {f['score']:.3f}" for f in result["fills"])
    vector = result["embedding"]
    return "[" + ", ".join(f"{x:.4f}" for x in vector[:4]) + f", … {len(vector)} numbers]"
