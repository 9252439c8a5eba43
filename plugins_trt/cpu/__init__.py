"""The operators on a CPU, under ONNX Runtime: compiled kernels, no Python in a call.

    lower.py          puts the CPU operators into a loaded graph
    register.py       makes them known to session options
    operators.py      what each of them is called, takes and gives
    names.py          their names
    native_op.py      an operator as ONNX Runtime's C interface wants it: what is asked once a session
    call_frame.py     what is called at every node, and what a kernel sees of a call
    *_kernel.py       the kernels, as Numba compiles them
    stored_matrix.py  the product with a matrix of any stored format

A session is made from `lower_for_cpu(model)` with options that went through `register_kernels`.
"""
