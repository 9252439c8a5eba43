"""A custom operator of ONNX Runtime whose kernel is compiled by Numba.

onnxruntime-extensions exports `AddExternalCustomOp`, which takes the C structure of an operator. This module fills that
structure with ctypes callbacks for what is asked once a session, and with `call_frame.compute` for what is called at
every node, so that nothing is copied, nothing of a call is Python and nothing has to be built. The layouts are ONNX
Runtime's stable C ABI: `OrtApi` only ever grows at its end.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from longllava_trt.core.dtypes import DTYPES, onnx_name
from longllava_trt.plugins_trt.cpu.call_frame import KERNEL, MAX_PHASES, TABLE, compute

__all__ = ["NativeOperator", "NativeValue"]

_FLOAT = DTYPES["float32"].onnx

_Pointer = ctypes.c_void_p
_Size = ctypes.c_size_t

_STRUCTURE_VERSION = 16  # the first whose callbacks can report failure
_ANY_TYPE = 0
_REQUIRED, _VARIADIC = 0, 2
_DEFAULT_MEMORY = 0

_Create = ctypes.CFUNCTYPE(_Pointer, _Pointer, _Pointer, _Pointer, ctypes.POINTER(_Pointer))
_GetPointer = ctypes.CFUNCTYPE(_Pointer, _Pointer)
_GetCount = ctypes.CFUNCTYPE(_Size, _Pointer)
_GetNumber = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer)
_GetNumberAt = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Size)
_GetAttribute = ctypes.CFUNCTYPE(
    _Pointer, _Pointer, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64)
)

# sessions may be destroyed when the interpreter is half gone: what is called and read then must not be Python's
_allocate, _free = ctypes.pythonapi.PyMem_RawCalloc, ctypes.pythonapi.PyMem_RawFree
_allocate.restype, _allocate.argtypes = _Pointer, [_Size, _Size]

# places in OrtApi
_ATTRIBUTE_INT = 86
_ENTRIES = {
    KERNEL.status: 0,
    KERNEL.data: 51,
    KERNEL.type: 60,
    KERNEL.rank: 61,
    KERNEL.dims: 62,
    KERNEL.info: 65,
    KERNEL.input_count: 88,
    KERNEL.input: 90,
    KERNEL.output: 91,
    KERNEL.free_info: 99,
    KERNEL.parallel: 274,
}


class _CustomOp(ctypes.Structure):
    """`OrtCustomOp`, as far as version 16 knows it."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("CreateKernel", _Pointer),
        ("GetName", _GetPointer),
        ("GetExecutionProviderType", _GetPointer),
        ("GetInputType", _GetNumberAt),
        ("GetInputTypeCount", _GetCount),
        ("GetOutputType", _GetNumberAt),
        ("GetOutputTypeCount", _GetCount),
        ("KernelCompute", _Pointer),
        ("KernelDestroy", _Pointer),
        ("GetInputCharacteristic", _GetNumberAt),
        ("GetOutputCharacteristic", _GetNumberAt),
        ("GetInputMemoryType", _GetNumberAt),
        ("GetVariadicInputMinArity", _GetNumber),
        ("GetVariadicInputHomogeneity", _GetNumber),
        ("GetVariadicOutputMinArity", _GetNumber),
        ("GetVariadicOutputHomogeneity", _GetNumber),
        ("CreateKernelV2", _Create),
        ("KernelComputeV2", _Pointer),
    )


@dataclass(frozen=True, slots=True)
class NativeValue:
    """One input or output of a native operator."""

    name: str
    axes: tuple[str, ...]
    """Dim names, equal within one call; `2*x` is twice `x`; `...` may come first and stands for any leading dims, those
    of the first input that has them. The dim `scratch` is the length that `plan` asks for."""
    types: tuple[int, ...] = (_FLOAT,)
    """Element types it may have; outputs are float32."""

    def __str__(self) -> str:
        types = " or ".join(map(onnx_name, self.types))
        return f"'{self.name}' must be [{', '.join(self.axes)}] {types}"


class NativeOperator:
    """An operator for sessions of ONNX Runtime; once registered it lives as long as the process.

    Args:
        name: Its op_type, in the domain of onnxruntime-extensions.
        plan: A `numba.cfunc` of signature `call_frame.PLAN`.
        phases: `numba.cfunc`s of signature `call_frame.PHASE`, run one after another.
        inputs: What it reads.
        outputs: What it writes; float32.
        repeated: Inputs that follow, any number of times over, all together.
        attributes: Names of the node's integer attributes.
        problem: What it means if `plan` returns 1.
    """

    def __init__(
        self,
        name: str,
        *,
        plan: Any,
        phases: tuple[Any, ...],
        inputs: tuple[NativeValue, ...],
        outputs: tuple[NativeValue, ...],
        repeated: tuple[NativeValue, ...] = (),
        attributes: tuple[str, ...] = (),
        problem: str = "its inputs do not fit together",
    ) -> None:
        assert len(phases) <= MAX_PHASES, f"Bug: at most {MAX_PHASES} phases"
        self.name = name
        self._inputs, self._repeated, self._outputs = inputs, repeated, outputs
        self._attributes = attributes
        self._functions = (plan, *phases)
        refusals = [
            f"{name}: {value}, and agree with the inputs before it"
            for value in (*inputs, *repeated)
        ]
        self._messages = [
            ctypes.create_string_buffer(text.encode()) for text in (*refusals, f"{name}: {problem}")
        ]
        self._table = self._build_table()
        self._name = ctypes.create_string_buffer(name.encode())
        self._structure = self._build_structure()

    def register(self, library: str) -> None:
        """Hand the operator to onnxruntime-extensions, for sessions that load its library from now on."""
        add = ctypes.CDLL(library).AddExternalCustomOp
        add.restype, add.argtypes = ctypes.c_bool, [_Pointer]
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        add(ctypes.addressof(self._structure))

    def _build_table(self) -> Any:
        values = (*self._inputs, *self._repeated, *self._outputs)
        dims: dict[str, int] = {"scratch": TABLE.max_dims - 1}
        table = np.zeros(TABLE.values + TABLE.row * len(values), np.int64)
        table[TABLE.fixed], table[TABLE.group] = len(self._inputs), len(self._repeated)
        table[TABLE.outputs], table[TABLE.phases] = len(self._outputs), len(self._functions) - 1
        for place, function in enumerate(self._functions, start=TABLE.plan):
            # the plan, the number of phases, the phases
            table[place + (place > TABLE.plan)] = function.address
        self._addresses = np.array([ctypes.addressof(m) for m in self._messages], np.int64)
        table[TABLE.messages] = self._addresses.ctypes.data
        for index, value in enumerate(values):
            row = TABLE.values + TABLE.row * index
            named = [axis for axis in value.axes if axis != "..."]
            table[row] = sum(1 << t for t in value.types)
            table[row + 1] = len(named) + TABLE.leading * ("..." in value.axes)
            for k, axis in enumerate(named):
                twice = axis.startswith("2*")
                number = dims.setdefault(axis.removeprefix("2*"), len(dims) - 1)
                table[row + 2 + k] = 2 * number + twice
        assert len(dims) <= TABLE.max_dims, f"Bug: {self.name} names too many dims"
        return table

    def _build_structure(self) -> _CustomOp:
        inputs = (*self._inputs, *self._repeated[:1])
        types = [v.types[0] if len(v.types) == 1 else _ANY_TYPE for v in inputs]
        kinds = [_REQUIRED] * len(self._inputs) + [_VARIADIC] * bool(self._repeated)
        if self._repeated:
            types[-1] = _ANY_TYPE
        fields: dict[str, Any] = {
            "GetInputType": _GetNumberAt(lambda _op, index: types[index]),
            "GetOutputType": _GetNumberAt(lambda _op, _index: _FLOAT),
            "GetInputCharacteristic": _GetNumberAt(lambda _op, index: kinds[index]),
            "GetOutputCharacteristic": _GetNumberAt(lambda _op, _index: _REQUIRED),
            "GetInputMemoryType": _GetNumberAt(lambda _op, _index: _DEFAULT_MEMORY),
            "GetVariadicInputHomogeneity": _GetNumber(lambda _op: 0),
        }
        for field in ("InputMinArity", "OutputMinArity", "OutputHomogeneity"):
            fields[f"GetVariadic{field}"] = _GetNumber(lambda _op: 1)
        return _CustomOp(
            version=_STRUCTURE_VERSION,
            GetName=_GetPointer(lambda _op: ctypes.addressof(self._name)),
            GetExecutionProviderType=_GetPointer(lambda _op: None),
            GetInputTypeCount=_GetCount(lambda _op: len(inputs)),
            GetOutputTypeCount=_GetCount(lambda _op: len(self._outputs)),
            KernelDestroy=ctypes.cast(_free, _Pointer),
            CreateKernelV2=_Create(self._create),
            KernelComputeV2=compute.address,
            **fields,
        )

    def _create(self, _op: int, api: int, info: int, kernel: Any) -> int | None:
        """Write down what `compute` needs of one node."""

        def entry(index: int) -> int:
            return _Pointer.from_address(api + index * ctypes.sizeof(_Pointer)).value or 0

        address = _allocate(KERNEL.words, ctypes.sizeof(ctypes.c_int64))
        words = (ctypes.c_int64 * KERNEL.words).from_address(address)
        for place, index in _ENTRIES.items():
            words[place] = entry(index)
        words[KERNEL.table] = self._table.ctypes.data
        number = ctypes.c_int64()
        for place, name in enumerate(self._attributes, start=KERNEL.attributes):
            status = _GetAttribute(entry(_ATTRIBUTE_INT))(info, name.encode(), ctypes.byref(number))
            if status:
                _free(_Pointer(address))
                return int(status)
            words[place] = number.value
        kernel[0] = _Pointer(address)
        return None
