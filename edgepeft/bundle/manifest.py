"""``edgepeft.json``: the schema that binds a base, its variants, its slots and its adapters.

The models below are the documentation of the format; :func:`json_schema` prints it as JSON Schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import ManifestError
from ..json_text import json_text
from ..strict_json import kind, parse_json
from .adapter_forms import AdapterForm
from .cache_names import LAYER_PAST, PAST, is_past, is_present
from .embedding import Embedding
from .heads import Activation, ProblemType
from .names import check_distinct, check_name, check_relative
from .slots import MAX_DIMENSIONS, Count, Dim, Name, Schema, Size, SlotTable

SCHEMA_VERSION = 1
MANIFEST_NAME = "edgepeft.json"
#: Most bytes of ``edgepeft.json``: a mixture of experts has ten thousands of slots.
MAX_MANIFEST_BYTES = 64 * 2**20
#: Most threads of a session: ONNX Runtime starts as many as it is told to, and ends the process where it cannot.
MAX_THREADS = 1024

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: What people read: a source, a method, a recipe.
Text = Annotated[str, Field(max_length=4096, strict=True)]
#: Bytes of a file, or numbers of a model.
Large = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
Labels = Annotated[tuple[Text, ...], Field(min_length=1, max_length=2**20)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]

#: Tasks whose graph gives one output of this name, beside those that write texts.
_GIVES_LOGITS = {
    "text-classification",
    "token-classification",
    "image-classification",
    "audio-classification",
    "fill-mask",
}

#: Tasks of encoder-decoders: two graphs, what reads the input once and what writes one token after another.
_TWO_GRAPHS = {"text2text-generation", "automatic-speech-recognition"}


class FileEntry(Schema):
    """One file of the bundle."""

    sha256: Hash
    bytes: Large


class Variant(Schema):
    """One precision of the base."""

    file: str
    data: tuple[str, ...] = ()
    #: The same graph over the same weights with its slots as plain inputs, for runtimes that cannot override initializers.
    input_file: str | None = None
    #: Whether ``input_file`` unpacks 4-bit weights as constants, to be folded when a session is made (in ONNX Runtime with
    #: ``session.disable_quant_qdq``): for runtimes without kernels for them.
    input_unpacked: bool = False
    #: An encoder-decoder's second graph; ``file`` is its encoder.
    decoder_file: str | None = None
    #: The decoder's graph with its slots as plain inputs, beside ``input_file``.
    decoder_input_file: str | None = None
    slots: Literal["overridable", "input", "none"] = "overridable"
    recipe: Text
    #: Whether it computes in float16, which a processor or a browser must have to be fast.
    half: bool = False
    #: The type of the key/value cache that goes in and out, where it is not that of ``inputs`` and ``outputs``.
    cache_dtype: Literal["float16", "int8"] | None = None
    #: Share of the base's weight numbers that are stored in fewer bits than fp32, 0 … 1.
    quantized_share: float = Field(ge=0, le=1, strict=True)

    @field_validator("file", "input_file", "decoder_file", "decoder_input_file")
    @classmethod
    def _relative(cls, path: str | None) -> str | None:
        return None if path is None else check_relative(path)

    def typed(self, values: Iterable[GraphInput]) -> tuple[GraphInput, ...]:
        """Inputs or outputs of the bundle with the types that they have in this variant."""
        cache = self.cache_dtype
        if cache is None:
            return tuple(values)
        return tuple(
            value.model_copy(update={"dtype": cache}) if is_past(value.name) or is_present(value.name) else value
            for value in values
        )

    def graphs(self) -> tuple[str, ...]:
        """Every graph of the variant."""
        more = (self.input_file, self.decoder_file, self.decoder_input_file)
        return (self.file, *(file for file in more if file))

    def files(self) -> tuple[str, ...]:
        """Every file of the variant: graphs and weights."""
        return (*self.graphs(), *self.data)


#: The text files that an adapter may bring.
TextName = Literal["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]


class BaseEntry(Schema):
    """What the base is and where it came from."""

    source: Text
    architecture: Text
    model_type: Text
    captured_by: Text
    #: sha256 over the weights that the checkpoint holds, before quantization.
    identity: Hash
    parameters: Large = Field(gt=0)
    #: Parameters that the checkpoint does not hold; zero in the base, outside its identity.
    fresh: tuple[Name, ...] = ()
    #: LoRA's ``layer_replication``: ranges ``[start, end)`` of the source's layers that stand behind each other in this
    #: base, each with weights of its own. Empty where the base is as deep as its source.
    layers: tuple[tuple[Count, Count], ...] = Field(default=(), max_length=4096)


class GraphInput(Schema):
    """A model input that is not a slot."""

    name: Name
    dtype: Name
    shape: tuple[Dim, ...] = Field(max_length=MAX_DIMENSIONS)
    #: Whether a run may leave it out: the graph holds a default.
    optional: bool = False


def prefix_tensors(inputs: Iterable[GraphInput]) -> dict[str, tuple[Dim, ...]]:
    """What an adapter that stands before the sequence holds, with shapes: one tensor for each cache input of the base."""
    return {
        f"prefix.{value.name.removeprefix(PAST)}": (1, value.shape[1], "prefix_length", value.shape[3])
        for value in inputs
        if LAYER_PAST.fullmatch(value.name) and len(value.shape) == 4
    }


class Refit(Schema):
    """An adapter's tensors, of the same names, shapes and form, fitted once more to the rounded weights of one variant.

    ``loss`` says how far the adapter on the variant is from the adapter on fp32 on texts that it was not fitted to, before and
    after: of a model that chooses tokens or labels the divergence in nats, else the root mean square of outputs.
    """

    onnx_adapter: str
    onnx: str
    bytes: Large
    loss: tuple[NotNegative, NotNegative]

    _relative = field_validator("onnx_adapter", "onnx")(check_relative)


class AdapterEntry(Schema):
    """One adapter and its contract with the base."""

    onnx_adapter: str
    onnx: str
    method: Text
    source: Text
    base_identity: Hash
    slots_hash: Hash
    #: How the tensors lie in both files; slots take them in float32 (see :mod:`.adapter_forms`).
    form: AdapterForm = "fp32"
    #: Exactly the slot tensors the file holds, with their shapes.
    tensors: dict[Name, Annotated[tuple[Size, ...], Field(max_length=MAX_DIMENSIONS)]]
    ranks: dict[Name, Count]
    labels: Labels | None = None
    #: What its outputs mean, and what makes scores of them; ``None``: as the base's, see :func:`.heads.head_of`.
    problem_type: ProblemType | None = None
    activation: Activation | None = None
    #: The task it is for, where that is not the bundle's (see ``Manifest.tasks``).
    task: Text | None = None
    #: False where the edits are not linear in a scale (gains, and a magnitude frozen at lowering).
    scalable: bool = True
    #: False where one of its slots cannot differ by row of a batch.
    per_row: bool = True
    #: How many places of the key/value cache its ``prefix.N.key/value`` tensors take before the sequence; 0 without any.
    prefix_length: Count = 0
    #: Text files that take the place of the bundle's for this adapter: its tokenizer, special tokens, chat template and
    #: generation defaults, by Hugging Face's names, as paths in the bundle.
    text: dict[TextName, str] = Field(default_factory=dict)
    #: For an adapter that was factored by SVD: the largest relative residual of a site. ``None``: a closed form, exact.
    residual: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=True)
    #: How texts are embedded with it, where its checkpoint says so; ``None``: as the base embeds them.
    embedding: Embedding | None = None
    #: By variant, what takes the place of ``onnx_adapter`` and ``onnx`` there (``add --refit``).
    refits: dict[Name, Refit] = Field(default_factory=dict)
    bytes: Large

    _relative = field_validator("onnx_adapter", "onnx")(check_relative)

    @field_validator("text")
    @classmethod
    def _relative_text(cls, text: dict[TextName, str]) -> dict[TextName, str]:
        for path in text.values():
            check_relative(path)
        return text

    def files(self) -> tuple[str, ...]:
        """Every file of the adapter: both forms of its tensors, its text, the graph of its embeddings, and what was refitted."""
        graph = () if self.embedding is None else (self.embedding.graph,)
        refitted = (file for each in self.refits.values() for file in (each.onnx_adapter, each.onnx))
        return tuple(dict.fromkeys((self.onnx_adapter, self.onnx, *self.text.values(), *graph, *refitted)))

    def subgraphs(self) -> tuple[str, ...]:
        """Every graph that holds its tensors."""
        return tuple(dict.fromkeys((self.onnx, *(each.onnx for each in self.refits.values()))))

    def on(self, variant: str) -> AdapterEntry:
        """The adapter as it runs on a variant: with the tensors that were fitted to it, where there are some."""
        own = self.refits.get(variant)
        if own is None:
            return self
        return self.model_copy(update={"onnx_adapter": own.onnx_adapter, "onnx": own.onnx, "bytes": own.bytes})

    def only(self, variants: Collection[str]) -> AdapterEntry:
        """The adapter without what was fitted to other variants than these."""
        return self.model_copy(update={"refits": {n: each for n, each in self.refits.items() if n in variants}})


class TaskEntry(Schema):
    """One task of a base that serves several: an encoder whose features are read by heads, which adapters bring.

    ``outputs`` is what the task's own model calls its outputs, and what the graph does. ``names`` maps the names of that model's
    parameters to the graph's: the first pair whose first text a name begins with is put in its place.
    """

    outputs: dict[Name, Name]
    names: tuple[tuple[Text, Text], ...] = Field(max_length=64)
    #: Parameters that the checkpoint does not hold, by the graph's names: an adapter for the task brings them.
    fresh: tuple[Name, ...] = ()
    #: What the base's config says of the task's head.
    labels: Labels | None = None
    problem_type: ProblemType | None = None
    activation: Activation | None = None


class Manifest(Schema):
    """``edgepeft.json``."""

    schema_version: Literal[1] = 1
    task: Text
    mode: Literal["swap", "merge", "bake"]
    base: BaseEntry
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    labels: Labels | None = None
    #: What the outputs of the base's head mean (a merged bundle's: of its adapter), and what makes scores of them.
    problem_type: ProblemType | None = None
    activation: Activation | None = None
    #: The tasks of a base that serves several, by name; ``task`` is the one that it has without an adapter. Empty: that one.
    tasks: dict[Text, TaskEntry] = Field(default_factory=dict)
    #: Longest input in tokens.
    max_length: Size | None = None
    #: How texts are embedded; ``None``: by the mean over their tokens, or the task is another.
    embedding: Embedding | None = None
    #: Of a language model: longer sequences are rotated by other frequencies from their first token on (LongRoPE). A cache
    #: belongs to one side; runtimes that cannot read a sequence anew end at this length.
    rope_switch: Size | None = None
    slots: SlotTable
    #: An ``.onnx_adapter`` file with the base's own numbers for slots that have some, to be fed to an ``input_file``.
    slot_defaults: str | None = None
    variants: dict[str, Variant]
    adapters: dict[str, AdapterEntry] = Field(default_factory=dict)
    #: The one adapter that is folded into the base (``merge``) or traced in unmerged (``bake``).
    merged: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        for path in self.files:
            check_relative(path)
        check_distinct(self.files, "files")
        for what, names in (("variants", self.variants), ("adapters", self.adapters)):
            for name in names:
                check_name(name)
            check_distinct(names, what)
        self._check_provenance()
        for variant in self.variants.values():
            for path in variant.files():
                if path not in self.files:
                    raise ValueError(f"variant file {path} is not listed under files")
        if self.slot_defaults is not None and self.slot_defaults not in self.files:
            raise ValueError(f"slot_defaults {self.slot_defaults} is not listed under files")
        for name, adapter in self.adapters.items():
            for path in adapter.files():
                if path not in self.files:
                    raise ValueError(f"adapter file {path} is not listed under files")
            if unknown := sorted(adapter.refits.keys() - self.variants.keys()):
                raise ValueError(
                    f"adapter {name} was refitted to variant {unknown[0]}, which is not listed under variants"
                )
        for embedding in self.embeddings:
            if embedding.graph not in self.files:
                raise ValueError(f"embedding graph {embedding.graph} is not listed under files")
        self._check_tasks()
        if not self.variants:
            raise ValueError("a bundle holds at least one variant")
        self._graphs_make_up_the_task()
        return self

    def _check_tasks(self) -> None:
        """A task that an adapter is for, and an output that a task reads, must be there."""
        known, outputs = {self.task, *self.tasks}, {value.name for value in self.outputs}
        for name, adapter in self.adapters.items():
            if adapter.task is not None and adapter.task not in known:
                raise ValueError(f"adapter {name} is for {adapter.task}; the base serves {', '.join(sorted(known))}")
        for task, entry in self.tasks.items():
            lacking = sorted(set(entry.outputs.values()) - outputs)
            if lacking:
                raise ValueError(f"task {task} reads output {lacking[0]}, which is not listed under outputs")
        if self.tasks and self.task not in self.tasks:
            raise ValueError(f"task {self.task} is not listed under tasks")

    def _graphs_make_up_the_task(self) -> None:
        for name, variant in self.variants.items():
            check_graphs_of_task(
                self.task, self.inputs, self.outputs, decoder=variant.decoder_file is not None, what=f"variant {name}"
            )

    def _check_provenance(self) -> None:
        """What is read of the provenance later must have the types that it is read as."""
        for key in ("target", "calibration", "merge_error"):
            if not isinstance(self.provenance.get(key, {}), Mapping):
                raise ValueError(f"provenance.{key} must be an object, found {kind(self.provenance[key])}")
        threads = self.target_threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise ValueError(f"provenance.target.threads must be 1 to {MAX_THREADS}, found {threads!r:.80}")

    @property
    def target_threads(self) -> int | None:
        """ONNX Runtime's threads on the target that the bundle was made for; ``None`` without one."""
        threads: int | None = self.provenance.get("target", {}).get("threads")
        return threads

    def prefix_tensors(self) -> dict[str, tuple[Dim, ...]]:
        """:func:`prefix_tensors` of this base."""
        return prefix_tensors(self.inputs)

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """How texts are embedded, by the base and by the adapters that say so."""
        own = (self.embedding, *(adapter.embedding for adapter in self.adapters.values()))
        return tuple(each for each in own if each is not None)

    @property
    def slot_adapters(self) -> dict[str, AdapterEntry]:
        """The adapters that fill slots alone: what runs where no cache is started from states."""
        return {name: entry for name, entry in self.adapters.items() if not entry.prefix_length}

    @property
    def writes(self) -> bool:
        """Whether its task is to write texts: a causal language model or an encoder-decoder."""
        return self.task in {"text-generation", "text2text-generation"}

    @property
    def hears(self) -> bool:
        """Whether its task is to write down speech: what it reads is sound, not a text."""
        return self.task == "automatic-speech-recognition"

    @property
    def decodes(self) -> bool:
        """Whether it gives a text token by token, of a text or of speech."""
        return self.writes or self.hears

    def deployed(self, variant: str) -> tuple[str, ...]:
        """What one device gets that runs ``variant``: every file but those of other variants only."""
        mine = {
            *self.variants[variant].files(),
            *(p for a in self.adapters.values() for p in a.only([variant]).files()),
        }
        others = {path for v in self.variants.values() for path in v.files()}
        others |= {path for adapter in self.adapters.values() for path in adapter.files()}
        return tuple(path for path in self.files if path in mine or path not in others)

    def on(self, variant: str) -> Manifest:
        """The manifest with each adapter as it runs on a variant (:meth:`AdapterEntry.on`)."""
        return self.model_copy(update={"adapters": {name: entry.on(variant) for name, entry in self.adapters.items()}})


_AGAIN = "export the bundle again"


def check_graphs_of_task(
    task: str, inputs: Sequence[GraphInput], outputs: Sequence[GraphInput], *, decoder: bool, what: str
) -> None:
    """Refuse graphs that do not make up their task: an encoder without its decoder opens and runs, and writes nothing.

    Args:
        task: The task of the bundle.
        inputs: Inputs of the first graph, without slots.
        outputs: Its outputs.
        decoder: Whether there is a second graph.
        what: Whose graphs they are, for the message.

    Raises:
        ValueError: A graph, an input or an output is missing, or there is one graph too many.
    """
    two = task in _TWO_GRAPHS
    if two and not decoder:
        raise ValueError(
            f"{what} has no decoder_file: {task} takes two graphs, the encoder and the decoder; slots and "
            "merges must cover both (edgepeft.pipeline.add_slots and merge do)"
        )
    if decoder and not two:
        raise ValueError(f"{what} has a decoder_file; {task} takes one graph")
    needed = {"logits"} if task == "text-generation" or task in _GIVES_LOGITS else set()
    missing = needed - {value.name for value in outputs}
    if missing:
        raise ValueError(f"{task} takes a graph that gives {', '.join(sorted(missing))}; this one does not")
    if task == "text-generation" and not prefix_tensors(inputs):
        raise ValueError(f"{task} takes a graph with key/value cache inputs (past_key_values.N.key and .value)")


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest in ``text``; raises :class:`ManifestError` that names ``where`` and each wrong key."""
    raw = parse_json(text, where, error=ManifestError, advice=_AGAIN, max_bytes=MAX_MANIFEST_BYTES)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION or type(version) is not int:
        raise ManifestError(
            f"{where} has schema_version {version!r:.80}; this edgepeft reads version {SCHEMA_VERSION}. "
            "Export the bundle again, or install the edgepeft that wrote it."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(f"{where} does not fit the schema: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first five problems of a value, each as ``key: what is wrong``."""
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, e['loc']))[:200] or '(top)'}: {e['msg']}" for e in problems[:5])


def dump_manifest(manifest: Manifest) -> str:
    """``manifest`` as the text of ``edgepeft.json``."""
    return json_text(manifest.model_dump(mode="json")) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``edgepeft.json``."""
    return Manifest.model_json_schema()
