"""ONNX Runtime: one stage, and the decoder with its carried state."""
