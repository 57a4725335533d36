"""Adapters: the canonical form, reading PEFT checkpoints, lowering, adapter files."""

from .edits import Adapter, Exactness, InGain, LowRank, OutGain, Override, Prefix, SiteEdit
from .read import read_adapter

__all__ = ["Adapter", "Exactness", "InGain", "LowRank", "OutGain", "Override", "Prefix", "SiteEdit", "read_adapter"]
