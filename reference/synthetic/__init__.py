"""Synthetic checkpoints: seeded random weights, or sparse files of the published sizes."""
