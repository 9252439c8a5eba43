"""The custom operators: their specification, and all code that computes them.

    spec.py     names, shapes, dtypes, attributes and mathematics of each operator, once
    bodies.py   ONNX function bodies, for runtimes without a kernel of ours
    stored_values.py   stored weights, and joins of them, among a graph's values
    cpu/        Numba kernels that ONNX Runtime calls, swapped in at load
    kernels/    Triton kernels for GPUs, each beside a plain PyTorch version
    csrc/       TensorRT plugins in C++ that launch these kernels
    library/    compiles both into one library
    launch_plans/  launches, grids and workspaces of the kernels, as plain arithmetic
    plugin_formats.py  formats of a plugin's tensors
    registry.py imports TensorRT and gives it the library
    device.py   this machine's GPU

Imports only `core` of this project, and no torch.
"""
