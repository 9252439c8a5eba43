"""The operators on a CPU, under ONNX Runtime: compiled kernels, no Python in a call.

    lower.py          puts the CPU operators into a loaded graph
    register.py       makes them known to session options
    operators.py      name, inputs and outputs of each
    op_names.py       their names
    ort_custom_op.py  an operator for ONNX Runtime's C interface: the calls of a session's start
    call_frame.py     the function called at every node, and a kernel's view of a call
    *_kernel.py       the kernels, as Numba compiles them
    stored_matrix.py  the product with a matrix of any stored format

A session is made from `lower_for_cpu(model)` with options that went through `register_kernels`.
"""
