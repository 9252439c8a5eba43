"""Polygraphy works on a bundle as far as a CPU goes: it reads graphs, and builds from our network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longllava_trt.plugins_trt.registry import TensorRT

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("polygraphy") is None,
        reason="that Polygraphy takes our graphs and networks is unproven: not installed",
    ),
]


def polygraphy(tensorrt: TensorRT, *arguments: str | Path) -> str:
    """Run the tool with the flavour at hand; returns what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if tensorrt.flavour == "tensorrt-rtx" else "0",
    }
    start = "import sys; from polygraphy.tools import main; sys.exit(main())"
    command = [sys.executable, "-c", start, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def documented_script() -> str:
    """Return the network script of the documentation."""
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?def load_network.*?)```", text, re.DOTALL)
    assert found, "docs/engines.md has no network script"
    return found[1]


def test_inspect_model_reads_a_graph(tensorrt: TensorRT, bfloat16_bundle: Path) -> None:
    graph = bfloat16_bundle / "decoder.onnx"
    said = polygraphy(tensorrt, "inspect", "model", graph, "--ignore-external-data")
    assert "ONNX Opset: 27 | Other Opsets: {'longllava': 1}" in said


def test_convert_builds_a_stage_without_attention(
    tensorrt: TensorRT, bfloat16_bundle: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "projector.engine"
    arguments: list[str | Path] = [
        "--convert-to",
        "trt",
        "-o",
        engine,
        "--compute-capabilities",
        "8.0",
    ]
    for word, images in (("min", 1), ("opt", 2), ("max", 4)):
        arguments += [f"--trt-{word}-shapes", f"image_features:[{images},576,32]"]
    polygraphy(tensorrt, "convert", bfloat16_bundle / "projector.onnx", *arguments)
    assert engine.stat().st_size > 10_000


def test_convert_builds_the_decoder_from_the_documented_script(
    tensorrt: TensorRT, bfloat16_bundle: Path, plugin_library: Path, tmp_path: Path
) -> None:
    script, engine = tmp_path / "decoder_network.py", tmp_path / "decoder.engine"
    text = documented_script().replace('Path("bundle")', f"Path({str(bfloat16_bundle)!r})")
    text = re.sub(r'plugins=Path\(".*?"\)', f"plugins=Path({str(plugin_library)!r})", text)
    text = re.sub(r"EngineLimits\(.*?\)", "EngineLimits(max_context=48, chunk=16)", text)
    script.write_text(text)
    arguments: list[str | Path] = [
        "--model-type",
        "trt-network-script",
        "--convert-to",
        "trt",
        "-o",
        engine,
    ]
    arguments += ["--compute-capabilities", "8.0"]
    for word, tokens in (("min", 1), ("opt", 8), ("max", 16)):
        arguments += [f"--trt-{word}-shapes", f"inputs_embeds:[1,{tokens},64]"]
    polygraphy(tensorrt, "convert", script, *arguments)
    assert engine.stat().st_size > 1_000_000
