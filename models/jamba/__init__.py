"""Jamba, text alone: v0.1, 1.5 Mini, and the 3B models."""
