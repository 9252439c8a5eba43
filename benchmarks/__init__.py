"""Measurements, each a script of its own. A package, so that no installed one of this name comes first."""
