"""One stage of a bundle in ONNX Runtime on a CPU.

The file on disk does not change. With `fast` kernels the graph is rewritten in memory when it is
loaded: our operators and every product with stored weights become compiled kernels. With `onnx`,
ONNX Runtime runs the ONNX functions in the file, and none of our kernels is registered.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.core.manifest import WEIGHTS_FOLDER, Manifest
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.runtime.backends.ort.kernels import Kernels, kernels_named

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

__all__ = ["Kernels", "OnnxSession"]

logger = logging.getLogger(__name__)


class OnnxSession:
    """A loaded stage.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        stage: Name of the stage.
        kernels: `fast`, or `onnx` for plain ONNX Runtime.
        num_threads: Threads of one operator; by default one for each core.
        extra_outputs: Values inside the graph to return as well, such as `layer_output_names`.

    Raises:
        ManifestError: If the bundle has no such stage, or ONNX Runtime refuses its graph.
        InputError: If the bundle's dtype does not run on a CPU.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        stage: str,
        *,
        kernels: Kernels = "fast",
        num_threads: int | None = None,
        extra_outputs: Sequence[str] = (),
    ) -> None:
        record = manifest.stage(stage)
        if manifest.dtype != "float32":
            raise InputError(
                f"{bundle}: graphs are {manifest.dtype}, which ONNX Runtime does not run on a CPU; "
                "export with --dtype float32 (weights stay as they are on disk)"
            )
        self.spec: StageSpec = record.spec
        self.session = _load(
            bundle, record.file, kernels_named(kernels), num_threads, extra_outputs
        )
        self.output_names = [t.name for t in record.spec.outputs] + list(extra_outputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays of the contract's names, shapes and dtypes.

        Raises:
            ContractError: If an input is not what the stage declares.
        """
        dims: dict[str, int] = {}
        for spec in self.spec.inputs:
            value = inputs[spec.name]
            spec.check(value.shape, str(value.dtype), dims=dims, where=self.spec.name)
        outputs = self.session.run(self.output_names, dict(inputs))
        return dict(zip(self.output_names, outputs, strict=True))


def _load(
    bundle: Path,
    file: str,
    kernels: Kernels,
    num_threads: int | None,
    extra_outputs: Sequence[str],
) -> onnxruntime.InferenceSession:
    """Read, rewrite and load one graph."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # it plans a block for each new shape, and the decoder has a new shape when its context grows
    options.enable_mem_pattern = False
    # else threads of a session that is done spin for milliseconds on cores that the next stage
    # needs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        model = onnx.load(bundle / file, load_external_data=False)
        if kernels == "fast":
            from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
            from longllava_trt.plugins_trt.cpu.register import register_kernels

            model = lower_for_cpu(model)
            register_kernels(options)
        for name in extra_outputs:
            model.graph.output.add().name = name
        files = _weight_files(bundle, options)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except _load_failures() as err:
        raise ManifestError(
            f"{bundle / file}: ONNX Runtime cannot load it ({err}); run 'longllava-trt verify {bundle}'"
        ) from err
    del files
    return session


def _weight_files(bundle: Path, options: onnxruntime.SessionOptions) -> list[mmap.mmap]:
    """Give ONNX Runtime the external data; returns maps that must live until the session is built.

    It maps files below the bundle by itself. It refuses symbolic links to files elsewhere, so these
    are mapped here and given to it.
    """
    folder = str(bundle.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    linked = [
        path
        for path in sorted((bundle / WEIGHTS_FOLDER).rglob("*.safetensors"))
        if path.is_symlink()
    ]
    maps = []
    for path in linked:
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if linked:
        options.add_external_initializers_from_files_in_memory(
            [path.relative_to(bundle).as_posix() for path in linked],
            [np.frombuffer(m, dtype=np.uint8) for m in maps],
            [len(m) for m in maps],
        )
    return maps


def _load_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that the libraries raise for a damaged graph or weight file."""
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return (OSError, DecodeError, *(getattr(state, name) for name in names))
