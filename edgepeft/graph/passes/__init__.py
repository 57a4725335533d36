"""Graph passes: each changes one thing in an ONNX graph."""
