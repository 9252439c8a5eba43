"""A custom operator of ONNX Runtime whose kernel is a Python function over ONNX Runtime's own memory.

onnxruntime-extensions has Python operators, but it turns each output into a list and back, at about a
hundred nanoseconds an element, many times what a scan costs. It also exports `AddExternalCustomOp`, which takes the C
structure of an operator; this module fills that structure with ctypes callbacks, so that nothing is copied and nothing
has to be compiled. The layouts are ONNX Runtime's stable C ABI: `OrtApi` only ever grows at its end.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NativeOperator"]

_Pointer = ctypes.c_void_p
_Size = ctypes.c_size_t

_STRUCTURE_VERSION = 16  # the first whose callbacks can report failure
_FLOAT = 1
_REQUIRED = 0
_DEFAULT_MEMORY = 0
_RUNTIME_EXCEPTION = 6

_Create = ctypes.CFUNCTYPE(_Pointer, _Pointer, _Pointer, _Pointer, ctypes.POINTER(_Pointer))
_Compute = ctypes.CFUNCTYPE(_Pointer, _Pointer, _Pointer)
_Destroy = ctypes.CFUNCTYPE(None, _Pointer)
_GetPointer = ctypes.CFUNCTYPE(_Pointer, _Pointer)
_GetCount = ctypes.CFUNCTYPE(_Size, _Pointer)
_GetNumber = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer)
_GetNumberAt = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Size)


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
        ("KernelDestroy", _Destroy),
        ("GetInputCharacteristic", _GetNumberAt),
        ("GetOutputCharacteristic", _GetNumberAt),
        ("GetInputMemoryType", _GetNumberAt),
        ("GetVariadicInputMinArity", _GetNumber),
        ("GetVariadicInputHomogeneity", _GetNumber),
        ("GetVariadicOutputMinArity", _GetNumber),
        ("GetVariadicOutputHomogeneity", _GetNumber),
        ("CreateKernelV2", _Create),
        ("KernelComputeV2", _Compute),
    )


class _Api:
    """The entries of `OrtApi` that a kernel needs, by their place in the table."""

    def __init__(self, address: int) -> None:
        def entry(index: int, result: Any, *arguments: Any) -> Any:
            place = address + index * ctypes.sizeof(_Pointer)
            function = _Pointer.from_address(place).value
            return ctypes.CFUNCTYPE(result, *arguments)(function or 0)

        pointer_out, size_out = ctypes.POINTER(_Pointer), ctypes.POINTER(_Size)
        dims = ctypes.POINTER(ctypes.c_int64)
        self.create_status = entry(0, _Pointer, ctypes.c_int, ctypes.c_char_p)
        self.tensor_data = entry(51, _Pointer, _Pointer, pointer_out)
        self.dimensions_count = entry(61, _Pointer, _Pointer, size_out)
        self.dimensions = entry(62, _Pointer, _Pointer, dims, _Size)
        self.type_and_shape = entry(65, _Pointer, _Pointer, pointer_out)
        self.kernel_input = entry(90, _Pointer, _Pointer, _Size, pointer_out)
        self.kernel_output = entry(91, _Pointer, _Pointer, _Size, dims, _Size, pointer_out)
        self.release_type_and_shape = entry(99, None, _Pointer)


class NativeOperator:
    """A float32 operator; keep the object for as long as any session may use it.

    Args:
        name: Its op_type, in the domain of onnxruntime-extensions.
        kernel: Called with every input, then every output to be filled. It must not write inputs. An exception fails
            the session's run with its message.
        num_inputs: How many inputs it has.
        outputs_like: For each output, the input whose shape it has.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., None],
        *,
        num_inputs: int,
        outputs_like: tuple[int, ...],
    ) -> None:
        self._kernel = kernel
        self._num_inputs = num_inputs
        self._outputs_like = outputs_like
        self._api: _Api | None = None
        self._name = ctypes.create_string_buffer(name.encode())
        self._structure = self._build_structure()

    def register(self, library: str) -> None:
        """Hand the operator to onnxruntime-extensions, for sessions that load its library from now on."""
        add = ctypes.CDLL(library).AddExternalCustomOp
        add.restype, add.argtypes = ctypes.c_bool, [_Pointer]
        add(ctypes.addressof(self._structure))

    def _build_structure(self) -> _CustomOp:
        number_at = {
            "GetInputType": _FLOAT,
            "GetOutputType": _FLOAT,
            "GetInputCharacteristic": _REQUIRED,
            "GetOutputCharacteristic": _REQUIRED,
            "GetInputMemoryType": _DEFAULT_MEMORY,
        }
        callbacks: dict[str, Any] = {
            field: _GetNumberAt(lambda _op, _index, value=value: value)
            for field, value in number_at.items()
        }
        for field in ("InputMinArity", "InputHomogeneity", "OutputMinArity", "OutputHomogeneity"):
            callbacks[f"GetVariadic{field}"] = _GetNumber(lambda _op: 1)
        return _CustomOp(
            version=_STRUCTURE_VERSION,
            GetName=_GetPointer(lambda _op: ctypes.addressof(self._name)),
            GetExecutionProviderType=_GetPointer(lambda _op: None),
            GetInputTypeCount=_GetCount(lambda _op: self._num_inputs),
            GetOutputTypeCount=_GetCount(lambda _op: len(self._outputs_like)),
            KernelDestroy=_Destroy(lambda _kernel: None),
            CreateKernelV2=_Create(self._create),
            KernelComputeV2=_Compute(self._compute),
            **callbacks,
        )

    def _create(self, _op: int, api: int, _info: int, kernel: Any) -> None:
        """Remember the table of functions; the kernel itself has no state."""
        if self._api is None:
            self._api = _Api(api)
        kernel[0] = _Pointer(1)

    def _compute(self, _kernel: int, context: int) -> int | None:
        api = self._api
        assert api is not None, "Bug: ONNX Runtime creates a kernel before it runs it"
        try:
            inputs = [_input(api, context, i) for i in range(self._num_inputs)]
            outputs = [
                _output(api, context, k, inputs[like].shape)
                for k, like in enumerate(self._outputs_like)
            ]
            self._kernel(*inputs, *outputs)
        except Exception as err:  # noqa: BLE001 - no exception can cross C; it becomes a status
            message = f"{type(err).__name__}: {err}".encode()
            status: int = api.create_status(_RUNTIME_EXCEPTION, message)
            return status
        return None


def _input(api: _Api, context: int, index: int) -> NDArray[np.float32]:
    """Return an input's memory as an array."""
    value, info, count = _Pointer(), _Pointer(), _Size()
    _check(api.kernel_input(context, index, ctypes.byref(value)))
    _check(api.type_and_shape(value, ctypes.byref(info)))
    try:
        _check(api.dimensions_count(info, ctypes.byref(count)))
        dims = (ctypes.c_int64 * count.value)()
        _check(api.dimensions(info, dims, count))
    finally:
        api.release_type_and_shape(info)
    return _array(api, value, tuple(dims))


def _output(api: _Api, context: int, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Let ONNX Runtime allocate an output, and return its memory as an array."""
    value = _Pointer()
    dims = (ctypes.c_int64 * len(shape))(*shape)
    _check(api.kernel_output(context, index, dims, len(shape), ctypes.byref(value)))
    return _array(api, value, shape)


def _array(api: _Api, value: ctypes.c_void_p, shape: tuple[int, ...]) -> NDArray[np.float32]:
    data = _Pointer()
    _check(api.tensor_data(value, ctypes.byref(data)))
    size = math.prod(shape)
    if not size:
        return np.empty(shape, np.float32)
    assert data.value is not None, "Bug: a tensor with elements has memory"
    memory: Any = (ctypes.c_float * size).from_address(data.value)
    return np.ndarray(shape, np.float32, memory)


def _check(status: int | None) -> None:
    # what went wrong is in the status, which is lost here: these calls fail on wrong indices only
    if status:
        raise RuntimeError("ONNX Runtime refused a kernel's request for a tensor")
