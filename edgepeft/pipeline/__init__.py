"""The stages put together: export, add, quantize."""
