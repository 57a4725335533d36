"""Bundles: the manifest, reading and checking, all-or-nothing writing."""

from .embedding import Embedding, OwnEmbedding
from .graphs import OpenGraph
from .heads import Head
from .loads import TEXT_FILES, loaded_files, variant_files, variant_graphs
from .lock import LOCK_TIMEOUT, locked, staying
from .manifest import (
    MANIFEST_NAME,
    AdapterEntry,
    BaseEntry,
    FileEntry,
    GraphInput,
    Manifest,
    Refit,
    Variant,
    dump_manifest,
    json_schema,
    parse_manifest,
)
from .manifest_heads import head_of
from .names import check_name
from .own_text import NO_TEXT, OwnText
from .read import Bundle, hash_file, read_bundle, require_bundle
from .reread import rereading
from .slots import ConvSlot, EmbeddingSlot, FactoredSlot, LinearSlot, OverrideSlot, SlotPart, SlotTable
from .transaction import replace_folder, replacing, scratch
from .verified import VerifiedFile, Verify

__all__ = [
    "LOCK_TIMEOUT",
    "MANIFEST_NAME",
    "NO_TEXT",
    "TEXT_FILES",
    "AdapterEntry",
    "BaseEntry",
    "Bundle",
    "ConvSlot",
    "Embedding",
    "EmbeddingSlot",
    "FactoredSlot",
    "FileEntry",
    "GraphInput",
    "Head",
    "LinearSlot",
    "Manifest",
    "OpenGraph",
    "OverrideSlot",
    "OwnEmbedding",
    "OwnText",
    "Refit",
    "SlotPart",
    "SlotTable",
    "Variant",
    "VerifiedFile",
    "Verify",
    "check_name",
    "dump_manifest",
    "hash_file",
    "head_of",
    "json_schema",
    "loaded_files",
    "locked",
    "parse_manifest",
    "read_bundle",
    "replace_folder",
    "replacing",
    "require_bundle",
    "rereading",
    "scratch",
    "staying",
    "variant_files",
    "variant_graphs",
]
