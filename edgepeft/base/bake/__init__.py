"""Baking: tracing a model with its adapter unmerged."""
