"""Quantise the experts of one real-size layer, and hold error and memory against what is expected.

The weights are Gaussian, so that the error of each format has a value to be compared with. Prints a table and, as its
last line, one JSON document. Exit status 1 if a limit is missed.

    python -m benchmarks.quantise_experts
    python -m benchmarks.quantise_experts --experts 2 --folder scratch
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from longllava_trt.core.safetensors_header import TensorSource, read_header, read_tensor
from longllava_trt.core.safetensors_writer import content_of, layout_safetensors, write_safetensors
from longllava_trt.core.weight_formats import QUANTISED, WEIGHT_FORMATS, MoeQuant
from longllava_trt.export.quantisation.expert_files import expert_records
from longllava_trt.export.quantisation.expert_writer import quantise_layer
from longllava_trt.models.llava_jamba.config import model_from_keys
from longllava_trt.models.parameters import expert_path
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import (
    GROUP,
    dequantise_int4,
    dequantise_int8,
)
from longllava_trt.reference.synthetic.presets import preset_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYER = 1
MATRICES = ("gate", "up", "down")
MAX_RSS_BYTES = 2 * 2**30
MAX_DEVIATION = 0.02
"""Of a measured error from the expected one; int4's errors are not quite uniform."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Cost and error of one format."""

    seconds: float
    gb_per_s: float
    """Of bfloat16 weights."""
    peak_rss_bytes: int
    file_bytes: int
    errors: dict[str, float]
    """Relative RMS, by matrix."""
    expected: dict[str, float]
    worst_step: float
    """Largest distance that a weight of the first or last expert moved, over its scale."""


def main() -> int:
    """Measure both formats."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experts", type=int, default=16, help="how many (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = model_of(args.experts)
    if args.worker:
        quant, folder = args.worker
        return work(Path(folder), config, quant)
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{'':7}{'s':>8}{'GB/s':>7}{'peak MiB':>10}{'file GB':>9}"
        + "".join(f"{m:>18}" for m in MATRICES)
    )
    figures: dict[str, Any] = {}
    misses: list[str] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        write_experts(Path(scratch) / "layer.safetensors", config)
        for quant in QUANTISED:
            found = measure(Path(scratch), config, quant)
            figures[quant] = asdict(found)
            print(line(quant, found))
            misses += [f"{quant}: {miss}" for miss in missed(found)]
    print("".join(f"missed: {miss}\n" for miss in misses), end="")
    print(json.dumps({"experts": args.experts, "figures": figures, "missed": misses}))
    return 1 if misses else 0


def write_experts(path: Path, config: ModelSpec) -> None:
    """Write random experts, a block of rows in memory at a time."""
    shapes = dict(names_and_shapes(config))
    layout = layout_safetensors(path.name, {name: (s, "bfloat16") for name, s in shapes.items()})
    write_safetensors(path, layout, random_content(shapes.values()))


def random_content(shapes: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    """Yield matrices in bfloat16, as large as trained ones, a block of rows at a time."""
    rng = np.random.default_rng(0)
    for rows, columns in shapes:
        for begin in range(0, rows, 512):
            block = rng.standard_normal((min(512, rows - begin), columns), dtype=np.float32)
            yield content_of((block * np.float32(0.02)).astype(ml_dtypes.bfloat16))


def model_of(num_experts: int) -> ModelSpec:
    """Return the published 53B with another number of experts."""
    whole = preset_config("53b", None)
    keys = {**whole.source, "num_experts": num_experts}
    return model_from_keys(keys, whole.require_vision())


def names_and_shapes(config: ModelSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the checkpoint's tensors of the layer."""
    experts, hidden = config.decoder.moe_layers[LAYER], config.decoder.hidden_size
    inner = experts.intermediate_size
    for expert in range(experts.num_experts):
        for matrix in MATRICES:
            shape = (hidden, inner) if matrix == "down" else (inner, hidden)
            yield family_of(config).tensor_name(expert_path(LAYER, expert, matrix)), shape


def work(folder: Path, config: ModelSpec, quant: MoeQuant) -> int:
    """Quantise in this process, whose memory is watched; prints what it found."""
    sources = read_header(folder / "layer.safetensors")
    begin = time.monotonic()
    made = quantise_layer(
        folder / f"{quant}.safetensors",
        LAYER,
        config=config,
        sources=sources,
        checkpoint=folder,
        quant=quant,
    )
    seconds = time.monotonic() - begin
    errors = {error.matrix: error.relative_rms for error in made.errors}
    print(json.dumps({"seconds": seconds, "bytes_read": made.bytes_read, "errors": errors}))
    return 0


def measure(folder: Path, config: ModelSpec, quant: MoeQuant) -> Figures:
    """Quantise in a process of its own, and look at what it wrote."""
    experts = config.decoder.moe_layers[LAYER]
    count, inner, hidden = (
        experts.num_experts,
        experts.intermediate_size,
        config.decoder.hidden_size,
    )
    command = [sys.executable, __file__, "--experts", str(count), "--worker", quant, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "Bug: stdout is a pipe"
        found = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    per_row = {
        "gate": hidden,
        "up": hidden,
        "down": inner,
    }
    format_ = WEIGHT_FORMATS[quant]
    columns = {matrix: format_.group or per_row[matrix] for matrix in MATRICES}
    path = folder / f"{quant}.safetensors"
    worst = max(worst_step(folder, config, quant, expert) for expert in (0, count - 1))
    nbytes = path.stat().st_size
    path.unlink()
    return Figures(
        seconds=round(found["seconds"], 1),
        gb_per_s=round(found["bytes_read"] / found["seconds"] / 1e9, 3),
        peak_rss_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        file_bytes=nbytes,
        errors=found["errors"],
        expected={matrix: expected_error(n, format_.top_code) for matrix, n in columns.items()},
        worst_step=worst,
    )


def expected_error(columns: int, top: int) -> float:
    """Return the relative RMS error of Gaussian weights: a step of the largest of ``columns``, over the root of 12."""
    magnitudes = np.linspace(0, 9, 90_001)
    below = np.array([math.erf(m / math.sqrt(2)) for m in magnitudes]) ** columns
    # the mean of a positive quantity's square is the integral of 2 m P(quantity > m)
    mean_square = float(np.trapezoid(2 * magnitudes * (1 - below), magnitudes))
    return math.sqrt(mean_square / 12) / top


def worst_step(folder: Path, config: ModelSpec, quant: MoeQuant, expert: int) -> float:
    """Read one expert back; return the largest distance to the checkpoint's, over the scale that applies."""
    names = expert_records(config, LAYER, quant)
    codes_gu, codes_down, scales_gu, scales_down = (
        np.memmap(
            folder / f"{quant}.safetensors", r.dtype, mode="r", offset=r.offset, shape=r.shape
        )[expert]
        for r in names.values()
    )
    sources = read_header(folder / "layer.safetensors")
    half = config.decoder.moe_layers[LAYER].intermediate_size
    parts = {
        "gate": (codes_gu[:half], scales_gu[:half]),
        "up": (codes_gu[half:], scales_gu[half:]),
        "down": (codes_down, scales_down),
    }
    worst = 0.0
    for matrix, (codes, scales) in parts.items():
        source = sources[family_of(config).tensor_name(expert_path(LAYER, expert, matrix))]
        worst = max(worst, _distance(source, folder, codes, scales))
    return worst


def _distance(
    source: TensorSource, folder: Path, codes: NDArray[Any], scales: NDArray[np.float32]
) -> float:
    weights, worst = read_tensor(source, folder), 0.0
    for begin in range(0, len(weights), 512):
        rows = slice(begin, begin + 512)
        is_int4 = codes.dtype == np.uint8
        values = (dequantise_int4 if is_int4 else dequantise_int8)(codes[rows], scales[rows])
        moved = np.abs(values - weights[rows].astype(np.float32))
        wide = np.repeat(scales[rows], GROUP, axis=-1) if is_int4 else scales[rows, None]
        worst = max(worst, float((moved / wide[:, : moved.shape[1]]).max()))
    return worst


def line(quant: str, found: Figures) -> str:
    """Return one row of the table: errors, and in brackets what was expected."""
    cells = "".join(f"{found.errors[m]:>9.5f} ({found.expected[m]:.4f})" for m in MATRICES)
    return (
        f"{quant:7}{found.seconds:>8.1f}{found.gb_per_s:>7.2f}{found.peak_rss_bytes / 2**20:>10.0f}"
        f"{found.file_bytes / 1e9:>9.2f}{cells}"
    )


def missed(found: Figures) -> list[str]:
    """Say which limits do not hold."""
    misses = [
        f"the error of {matrix} must be within {MAX_DEVIATION:.0%} of {want:.5f}, got {found.errors[matrix]:.5f}"
        for matrix, want in found.expected.items()
        if abs(found.errors[matrix] / want - 1) > MAX_DEVIATION
    ]
    if found.peak_rss_bytes > MAX_RSS_BYTES:
        misses.append(f"memory must stay within {MAX_RSS_BYTES} bytes, got {found.peak_rss_bytes}")
    if not found.worst_step <= 0.5001:
        misses.append(f"no weight may move by more than half its scale, got {found.worst_step:.4f}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
