"""Synthetic checkpoints and their bundles, made once, and one report over all levels for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.core.parity import ParityReport, ParityRow
from longllava_trt.export.bundle import export_bundle
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.run import run_levels
from tests.export.stored_traces import stored_traces

Made = tuple[Path, Path]
"""A bundle and the checkpoint it was exported from."""


def make(folder: Path, preset: str, traces: Path) -> Made:
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    write_checkpoint(checkpoint, preset=preset)
    with stored_traces(traces):
        export_bundle(checkpoint, bundle)
    return bundle, checkpoint


def rows_of(report: ParityReport, *prefixes: str) -> list[ParityRow]:
    """Return the rows whose name begins with one of ``prefixes``."""
    return [row for row in report.rows if row.name.startswith(prefixes)]


def assert_all_passed(rows: list[ParityRow]) -> None:
    assert rows, "no such row"
    assert [row.line() for row in rows if row.status != "passed"] == []


@pytest.fixture(scope="session", params=["tiny", "tiny-dense"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traces: Path
) -> Made:
    """Routed as the 53B, then dense as the 9B."""
    return make(tmp_path_factory.mktemp(request.param), request.param, traces)


@pytest.fixture(scope="session")
def subject(made: Made) -> ParityCase:
    return ParityCase.open(*made)


@pytest.fixture(scope="session")
def report(subject: ParityCase) -> ParityReport:
    """All levels on all kernels."""
    return run_levels(subject)
