"""Bundle to TensorRT engines, also for a GPU that this machine lacks."""
