"""Recipes that turn one variant of a base into another."""

from .recipes import RECIPES, Quantized, Recipe, count_quantized, recipe, total

__all__ = ["RECIPES", "Quantized", "Recipe", "count_quantized", "recipe", "total"]
