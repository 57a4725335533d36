"""Bundles: the manifest, reading and checking, all-or-nothing writing."""

from .lock import LOCK_TIMEOUT, locked, staying
from .manifest import (
    MANIFEST_NAME,
    AdapterEntry,
    BaseEntry,
    FileEntry,
    GraphInput,
    Manifest,
    Variant,
    check_name,
    dump_manifest,
    json_schema,
    parse_manifest,
)
from .read import Bundle, hash_file, read_bundle
from .reread import rereading
from .slots import ConvSlot, EmbeddingSlot, FactoredSlot, LinearSlot, OverrideSlot, SlotPart, SlotTable
from .transaction import replace_folder, replacing, scratch

__all__ = [
    "LOCK_TIMEOUT",
    "MANIFEST_NAME",
    "AdapterEntry",
    "BaseEntry",
    "Bundle",
    "ConvSlot",
    "EmbeddingSlot",
    "FactoredSlot",
    "FileEntry",
    "GraphInput",
    "LinearSlot",
    "Manifest",
    "OverrideSlot",
    "SlotPart",
    "SlotTable",
    "Variant",
    "check_name",
    "dump_manifest",
    "hash_file",
    "json_schema",
    "locked",
    "parse_manifest",
    "read_bundle",
    "replace_folder",
    "replacing",
    "rereading",
    "scratch",
    "staying",
]
