"""onnx_ir work: finding sites by content, slots, folding, composing."""
