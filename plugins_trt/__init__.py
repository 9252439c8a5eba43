"""The custom operators: what they are called, and everything that computes them.

    spec.py     names, shapes, dtypes, attributes and mathematics of each operator, once
    bodies.py   ONNX function bodies: what runs where nothing is registered
    cpu/        Numba kernels and contrib operators, swapped in at load
    kernels/    Triton kernels for GPUs, each beside a naive twin

Imports the floor only: neither torch nor the reference nor the exporter.
"""
