"""Capturing a base model as ONNX: traced, or an existing file."""
