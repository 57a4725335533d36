"""The ways to capture a base as ONNX: traced, built by mobius, or given as a file."""
