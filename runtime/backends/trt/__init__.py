"""TensorRT: engines, their weights, and the decoder with its carried state on the device."""
