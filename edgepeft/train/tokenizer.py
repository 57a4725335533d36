"""What training asks of a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class HubTokenizer(Protocol):
    """The part of transformers' fast tokenizers that training uses; transformers ships no types that hold."""

    pad_token_id: int | None
    eos_token_id: int | None
    chat_template: str | dict[str, str] | None
    model_max_length: int

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of the special tokens."""
        ...

    def __call__(self, text: str | list[str], text_pair: list[str] | None = None, /, **options: Any) -> Any:
        """An encoding: ``input_ids`` and what the options ask for, by name."""
        ...

    def apply_chat_template(self, conversation: Sequence[dict[str, str]], /, **options: Any) -> Any:
        """A conversation laid out as text, or as an encoding where ``tokenize`` is true."""
        ...
