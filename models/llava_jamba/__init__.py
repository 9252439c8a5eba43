"""LongLLaVA (`model_type: llava_jamba`): configuration, names of tensors, presets."""
