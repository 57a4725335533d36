"""Bundles on the Hugging Face hub: ``push`` with a model card, ``pull`` with every file verified."""

from __future__ import annotations

from .card import model_card
from .pull import pull
from .push import Pushed, push

__all__ = ["Pushed", "model_card", "pull", "push"]
