"""Settings that must stand before the first heavy import, and the bundle that several rooms test with."""

import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_ROOT = Path(__file__).parents[1]
_KERNELS = b"".join(path.read_bytes() for path in sorted(_ROOT.glob("plugins_trt/cpu/*.py")))
_ENVIRONMENT = {
    "NVIDIA_TF32_OVERRIDE": "0",  # float32 means float32
    # Numba notices a change in the outermost function's file only
    "NUMBA_CACHE_DIR": str(_ROOT / f".cache/numba/tests-{zlib.crc32(_KERNELS):08x}"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Triton reads it whenever it decorates a kernel, its own library's included; 0 sends kernels to the GPU
    "TRITON_INTERPRET": "1",
}
for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
if "PYTEST_XDIST_WORKER" in os.environ:
    # the workers share the cores: torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run; a loaded machine is not a failure
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """Undo what a command that ran in this process, in a test or in a fixture, did to everybody's loggers."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.handlers[:] = [h for h in root.handlers if type(h) is not logging.StreamHandler]
    logging.getLogger("longllava_trt").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic checkpoint of a few megabytes; not to be written to."""
    from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder, preset="tiny")
    return folder


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which this run of the tests keeps its traces."""
    from tests.export.stored_traces import traces_folder

    return traces_folder(tmp_path_factory)


@pytest.fixture
def traced_before(traces: Path) -> Iterator[None]:
    """Exports in this process trace what no test has traced before."""
    from tests.export.stored_traces import stored_traces

    with stored_traces(traces):
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, traces: Path) -> Path:
    """That checkpoint's float32 bundle; not to be written to."""
    from longllava_trt.export.bundle import export_bundle
    from tests.export.stored_traces import stored_traces

    bundle = tiny_checkpoint.with_name("bundle")
    with stored_traces(traces):
        export_bundle(tiny_checkpoint, bundle)
    return bundle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests, so that none of them is left to one process at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
