"""Bundle to TensorRT engines, for a GPU that need not be here."""
