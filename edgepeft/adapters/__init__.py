"""Adapters: the canonical form, reading PEFT checkpoints, lowering, adapter files."""

from .form import Adapter, InGain, LowRank, OutGain, Override, Prefix, SiteEdit
from .read import read_adapter

__all__ = ["Adapter", "InGain", "LowRank", "OutGain", "Override", "Prefix", "SiteEdit", "read_adapter"]
