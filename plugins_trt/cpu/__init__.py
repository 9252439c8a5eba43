"""The custom operators on a CPU, under ONNX Runtime.

    scan_kernel.py      the selective scan as Numba loops
    selective_scan.py   the same, checked at the door: NumPy arrays in and out
    lower.py            puts the CPU kernels into a loaded graph
    register.py         makes them known to session options

A session is made from `lower_for_cpu(model)` with options that went through `register_kernels`.
"""
