"""The shipped checkpoint and its bundle."""

from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parents[2] / "examples/needle/checkpoint"


@pytest.fixture(scope="session")
def needle_checkpoint() -> Path:
    """The trained checkpoint; not to be written to."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def needle_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its float32 bundle; not to be written to."""
    from longllava_trt.export.bundle import export_bundle
    from tests.export.stored_traces import stored_traces, traces_folder

    bundle = tmp_path_factory.mktemp("needle") / "bundle"
    with stored_traces(traces_folder(tmp_path_factory)):
        export_bundle(CHECKPOINT, bundle, dtype="float32")
    return bundle
