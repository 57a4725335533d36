"""Capturing a language model whose numbers stay in their files: each tensor is read when it is written or compared."""
