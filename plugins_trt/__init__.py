"""The custom operators: what they are called, and everything that computes them.

    spec.py     names, shapes, dtypes, attributes and mathematics of each operator, once
    bodies.py   ONNX function bodies: what runs where nothing is registered
    stored_values.py    which stored bytes a value of a graph is made of
    cpu/        Numba kernels that ONNX Runtime calls, swapped in at load
    kernels/    Triton kernels for GPUs, each beside a naive twin
    csrc/       TensorRT plugins in C++ that launch these kernels
    build.py    compiles both into one library; aot.py codegen.py forms.py headers.py host_compiler.py
    registry.py imports TensorRT and gives it the library
    device.py   the GPU at hand

Imports the floor only: neither torch nor the reference nor the exporter.
"""
