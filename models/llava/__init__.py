"""LLaVA-1, 1.5, 1.5-HD and 1.6, in the original's format and in transformers'."""
