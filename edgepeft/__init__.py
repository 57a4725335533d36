"""edgepeft: deploy PEFT-adapted transformer models on edge devices through ONNX Runtime."""

__version__ = "0.1.0"
