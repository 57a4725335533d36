"""Adapters that are lowered by running them in PEFT over the PyTorch base."""
