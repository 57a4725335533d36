"""Recipes that turn one variant of a base into another."""

from .recipes import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Recipe", "recipe"]
