"""LongLLaVA (`model_type: llava_jamba`): its configuration, the names of its tensors, its presets."""
