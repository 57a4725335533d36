"""Embeddings of texts: folders that sentence-transformers wrote, and the graph that computes what their modules compute."""
