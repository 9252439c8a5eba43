"""LongLLaVA (`model_type: llava_jamba`): its configuration and the names of its tensors."""
