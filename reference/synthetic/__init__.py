"""Synthetic checkpoints: seeded random weights, or files of the published sizes that hold no data."""
