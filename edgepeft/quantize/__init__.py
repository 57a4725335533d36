"""Recipes that turn one variant of a base into another."""

from .recipes import RECIPES, Quantized, Recipe, count_quantized, recipe

__all__ = ["RECIPES", "Quantized", "Recipe", "count_quantized", "recipe"]
