"""Output of `export --moe-quant`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.usefixtures("traced_before")
def test_losses_and_throughput_are_printed(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--stages", "decoder", "--moe-quant", "w8a16"]
    text = cli("export", tiny, tmp_path / "text", *options).out
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("experts w8a16"))
    assert lines[begin + 1].split() == ["layer", "gate", "up", "down"]
    rows = [line.split() for line in lines[begin + 2 : begin + 6]]
    assert [row[0] for row in rows] == ["1", "3", "5", "7"]
    assert all(0 < float(value) < 0.01 for row in rows for value in row[1:])
    assert "GB/s" in lines[begin + 6]
    made = json.loads(
        cli("export", tiny, tmp_path / "json", *options, "--json").out.splitlines()[-1]
    )
    assert made["moe_quant"] == "w8a16"
    assert made["quantised_bytes"] > 0
    printed = {(e["layer"], e["matrix"]): e["relative_rms"] for e in made["quantisation_errors"]}
    assert f"{printed[1, 'gate']:.5f}" == rows[0][1]
    assert len(printed) == 12


def test_an_unknown_format_is_refused(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("export", tiny, tmp_path / "out", "--moe-quant", "w2a16")
    assert result.code == 2
    assert "w4a16" in result.message


def test_a_dense_model_is_refused(tmp_path: Path, cli: Cli) -> None:
    cli("synth", tmp_path / "dense", "--preset", "tiny-dense")
    result = cli("export", tmp_path / "dense", tmp_path / "out", "--moe-quant", "w8a16")
    assert result.code == 2
    assert "this model has none; export it without --moe-quant" in result.message
    assert not (tmp_path / "out").exists()
