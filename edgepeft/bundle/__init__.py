"""Bundles: the manifest, reading and checking, all-or-nothing writing."""

from .manifest import (
    MANIFEST_NAME,
    AdapterEntry,
    BaseEntry,
    FileEntry,
    GraphInput,
    Manifest,
    Variant,
    dump_manifest,
    json_schema,
    parse_manifest,
)
from .names import check_name
from .read import Bundle, hash_file, read_bundle
from .slots import ConvSlot, EmbeddingSlot, FactoredSlot, LinearSlot, OverrideSlot, SlotPart, SlotTable
from .transaction import replace_folder, replacing

__all__ = [
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
    "parse_manifest",
    "read_bundle",
    "replace_folder",
    "replacing",
]
