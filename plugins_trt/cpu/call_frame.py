"""Arguments of a compiled kernel, and the compiled function that ONNX Runtime calls for each operator.

No Python runs in a call. `compute` asks ONNX Runtime for the inputs, holds them against the
operator's table, lets it allocate the outputs and runs the kernel's phases on ONNX Runtime's own
threads: a second thread pool would fight the first for the cores. Everything a kernel needs is in a
frame of int64 words:

    0..7    tasks of each phase; `plan` sets the first, a phase may set those after it
    8..15   the node's attributes
    16      length of the scratch output, float32; set by `plan`
    17      number of inputs
    18..31  free for the kernel
    32...   eight words a value, inputs then outputs: address, element type, rank, up to five dims

Kernels are two kinds of C functions: `plan(frame)` returns 0, or 1 if it cannot be; `phase(frame,
task)` does one task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ATTRIBUTES",
    "FREE",
    "KERNEL",
    "MAX_PHASES",
    "NUM_INPUTS",
    "PHASE",
    "PLAN",
    "SCRATCH",
    "TABLE",
    "array_at",
    "bytes_at",
    "compute",
    "dim",
    "element_type",
    "floats",
    "frame_words",
    "matrix",
    "rank",
    "tensor",
]

MAX_PHASES = 8
ATTRIBUTES, SCRATCH, NUM_INPUTS, FREE = 8, 16, 17, 18
_VALUES, _VALUE_WORDS, _MAX_RANK = 32, 8, 5

PLAN = "int64(int64)"
PHASE = "void(int64, uint64)"


class _Kernel(NamedTuple):
    """Indices of a kernel's words: ONNX Runtime's functions, the operator's table, attributes."""

    input_count: int = 0
    input: int = 1
    output: int = 2
    data: int = 3
    info: int = 4
    type: int = 5
    rank: int = 6
    dims: int = 7
    free_info: int = 8
    parallel: int = 9
    status: int = 10
    table: int = 11
    attributes: int = 12
    words: int = 20


class _Table(NamedTuple):
    """Places in an operator's table.

    A value's row begins with its element types as bits, then rank, then axes. An axis is a dim's
    number times two, plus one where its size is twice the dim's. A rank of `leading` and more
    stands for any dims before that number of named ones.
    """

    fixed: int = 0
    group: int = 1
    outputs: int = 2
    plan: int = 3
    phases: int = 4
    phase: int = 5
    messages: int = 13
    values: int = 14
    row: int = 2 + _MAX_RANK
    max_dims: int = 16
    leading: int = 100


# compiled code reads a named tuple's fields as constants; of a class it knows nothing
KERNEL, TABLE = _Kernel(), _Table()

_compile = numba.njit(error_model="numpy", cache=True)
# a signature, lest every literal argument be compiled for
_compile_place = numba.njit("int64(int64)", error_model="numpy", cache=True)
_compile_fact = numba.njit("int64(int64[::1], int64)", error_model="numpy", cache=True)
_compile_dim = numba.njit("int64(int64[::1], int64, int64)", error_model="numpy", cache=True)


def _type_pointer(_context: Any, _address: Any) -> tuple[Any, Callable[..., Any]]:
    """Turn an address into a pointer."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def _type_call(_context: Any, _address: Any, arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """Call the C function at an address with a tuple of words; returns a word."""
    count = len(arguments)

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = builder.inttoptr(args[0], ir.FunctionType(word, [word] * count).as_pointer())
        return builder.call(function, [builder.extract_value(args[1], k) for k in range(count)])

    return types.int64(types.int64, arguments), codegen


# not decorators: those would give callers the compiler's own signature
_pointer: Any = intrinsic(_type_pointer)
_call: Any = intrinsic(_type_call)


@_compile
def array_at(address: Any, shape: Any, dtype: Any) -> Any:
    """Return the memory at an address as a C-contiguous array of a shape and dtype."""
    return carray(_pointer(address), shape, dtype)


@_compile
def _address_of(array: Any) -> Any:
    """Return where an array's elements begin."""
    return np.int64(array.ctypes.data)


@_compile
def frame_words(address: Any) -> Any:
    """Return the words of a frame, or any others."""
    return array_at(address, (1 << 20,), np.int64)


@_compile_place
def _value(index: Any) -> Any:
    return _VALUES + _VALUE_WORDS * index


@_compile_fact
def element_type(frame: Any, index: Any) -> Any:
    """Return a value's element type, as ONNX numbers them."""
    return frame[_value(index) + 1]


@_compile_fact
def rank(frame: Any, index: Any) -> Any:
    """Return the number of dims of a value."""
    return frame[_value(index) + 2]


@_compile_dim
def dim(frame: Any, index: Any, axis: Any) -> Any:
    """Return one dim of a value; negative axes count from the end."""
    first = _value(index) + 3
    return frame[first + axis] if axis >= 0 else frame[first + rank(frame, index) + axis]


@_compile_fact
def bytes_at(frame: Any, index: Any) -> Any:
    """Return the address of a value's elements."""
    return frame[_value(index)]


@_compile
def floats(frame: Any, index: Any) -> Any:
    """Return a float32 value as a vector [elements]."""
    size = 1
    for axis in range(rank(frame, index)):
        size *= dim(frame, index, axis)
    return array_at(bytes_at(frame, index), (size,), np.float32)


@_compile
def matrix(frame: Any, index: Any) -> Any:
    """Return a float32 value as a matrix [rows, columns]; the rows are its leading dims."""
    columns = dim(frame, index, -1)
    rows = 1
    for axis in range(rank(frame, index) - 1):
        rows *= dim(frame, index, axis)
    return array_at(bytes_at(frame, index), (rows, columns), np.float32)


@_compile
def tensor(frame: Any, index: Any) -> Any:
    """Return a float32 value of three dims as an array [dim 0, dim 1, dim 2]."""
    shape = (dim(frame, index, 0), dim(frame, index, 1), dim(frame, index, 2))
    return array_at(bytes_at(frame, index), shape, np.float32)


@_compile
def _row(table: Any, index: Any) -> Any:
    """Return where the row of an input is; those past the fixed ones repeat a group."""
    fixed, group = table[TABLE.fixed], table[TABLE.group]
    if index >= fixed and group:
        index = fixed + (index - fixed) % group
    return TABLE.values + TABLE.row * index


@_compile
def _read_input(kernel: Any, context: Any, frame: Any, index: Any) -> Any:
    """Put an input's address, type and shape into the frame; False if its rank is too high."""
    place = _value(index)
    cell = np.zeros(1, np.int64)
    out = _address_of(cell)
    _call(kernel[KERNEL.input], (context, np.int64(index), out))
    value = cell[0]
    _call(kernel[KERNEL.info], (value, out))
    info = cell[0]
    _call(kernel[KERNEL.type], (info, out))
    frame[place + 1] = cell[0] & 0xFFFFFFFF
    _call(kernel[KERNEL.rank], (info, out))
    count = cell[0]
    frame[place + 2] = count
    fits = count <= _MAX_RANK
    if fits:
        _call(kernel[KERNEL.dims], (info, _address_of(frame[place + 3 :]), count))
    _call(kernel[KERNEL.free_info], (info,))
    _call(kernel[KERNEL.data], (value, out))
    frame[place] = cell[0]
    return fits


@_compile
def _agrees(table: Any, frame: Any, index: Any, dims: Any, leading: Any) -> Any:
    """Compare an input with its row, and store the dims that it is the first to name."""
    row = _row(table, index)
    if not (table[row] >> element_type(frame, index)) & 1:
        return False
    named, count = table[row + 1], rank(frame, index)
    if named >= TABLE.leading:
        named -= TABLE.leading
        leading[0] = count - named
        if leading[0] < 0:
            return False
        leading[1] = index
    elif count != named:
        return False
    for k in range(named):
        axis, size = table[row + 2 + k], dim(frame, index, count - named + k)
        factor = 1 + (axis & 1)
        if dims[axis >> 1] < 0:
            dims[axis >> 1] = size // factor
        if dims[axis >> 1] * factor != size:
            return False
    return True


@_compile
def _make_output(kernel: Any, context: Any, frame: Any, place: Any, index: Any) -> None:
    """Let ONNX Runtime allocate the output whose dims are in the frame."""
    cell = np.zeros(1, np.int64)
    out = _address_of(cell)
    dims = _address_of(frame[place + 3 :])
    _call(kernel[KERNEL.output], (context, np.int64(index), dims, frame[place + 2], out))
    _call(kernel[KERNEL.data], (cell[0], out))
    frame[place] = cell[0]


@_compile
def _shape_output(table: Any, frame: Any, index: Any, dims: Any, leading: Any) -> Any:
    """Fill an output's dims from those of the inputs; returns its place in the frame."""
    row = TABLE.values + TABLE.row * (table[TABLE.fixed] + table[TABLE.group] + index)
    place = _value(frame[NUM_INPUTS] + index)
    named, before = table[row + 1], 0
    if named >= TABLE.leading:
        named -= TABLE.leading
        before = leading[0]
    for axis in range(before):
        frame[place + 3 + axis] = dim(frame, leading[1], axis)
    for k in range(named):
        axis = table[row + 2 + k]
        frame[place + 3 + before + k] = dims[axis >> 1] * (1 + (axis & 1))
    frame[place + 1], frame[place + 2] = 1, before + named
    return place


@_compile
def _refusal(kernel: Any, message: Any) -> Any:
    runtime_exception = np.int64(6)
    messages = frame_words(frame_words(kernel[KERNEL.table])[TABLE.messages])
    return _call(kernel[KERNEL.status], (runtime_exception, messages[message]))


@_compile
def _prepare(kernel: Any, context: Any, frame: Any) -> Any:
    """Fill the frame and allocate the outputs; return 0, or 1 plus the number of an error text."""
    table = frame_words(kernel[KERNEL.table])
    dims, leading = np.full(TABLE.max_dims, -1, np.int64), np.zeros(2, np.int64)
    fixed, group = table[TABLE.fixed], table[TABLE.group]
    for index in range(frame[NUM_INPUTS]):
        fits = _read_input(kernel, context, frame, index)
        if not (fits and _agrees(table, frame, index, dims, leading)):
            return 1 + min(index, fixed + max(group, 1) - 1)
    for k in range(KERNEL.words - KERNEL.attributes):
        frame[ATTRIBUTES + k] = kernel[KERNEL.attributes + k]
    if _call(table[TABLE.plan], (_address_of(frame),)):
        return 1 + fixed + group
    dims[TABLE.max_dims - 1] = frame[SCRATCH]
    for index in range(table[TABLE.outputs]):
        place = _shape_output(table, frame, index, dims, leading)
        _make_output(kernel, context, frame, place, index)
    return 0


@numba.cfunc("int64(int64, int64)", error_model="numpy", cache=True)
def compute(kernel_address: Any, context: Any) -> Any:
    """Run one node: `KernelComputeV2` of ONNX Runtime's C interface; return a status, null if ok."""
    kernel = frame_words(kernel_address)
    table = frame_words(kernel[KERNEL.table])
    cell = np.zeros(1, np.int64)
    _call(kernel[KERNEL.input_count], (context, _address_of(cell)))
    frame = np.zeros(_value(cell[0] + table[TABLE.outputs]), np.int64)
    frame[NUM_INPUTS] = cell[0]
    problem = _prepare(kernel, context, frame)
    if problem:
        return _refusal(kernel, problem - 1)
    address = _address_of(frame)
    for phase in range(table[TABLE.phases]):
        function, tasks = table[TABLE.phase + phase], frame[phase]
        if tasks == 1:
            _call(function, (address, np.int64(0)))
        elif tasks:
            # a batch a task: whichever thread is free takes the next
            _call(kernel[KERNEL.parallel], (context, function, tasks, tasks, address))
    # read last, so that the words outlive the tasks
    return frame[NUM_INPUTS] - cell[0]
