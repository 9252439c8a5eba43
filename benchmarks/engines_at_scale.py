"""Build the engines of the published sizes for an A100, without weights and without a GPU.

Checkpoints are sparse files: no weight is read, since engines take weights as inputs. The plugin library is compiled
beforehand. Prints a table and, as its last line, one JSON document. Exit status 1 if a limit is missed.

    python -m benchmarks.engines_at_scale
    python -m benchmarks.engines_at_scale --presets 9b --target sm89 --max-context 40000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.commands import longllava
from longllava_trt.core.engine_record import EngineRecord
from longllava_trt.models.contracts import TRAINED_CONTEXT

LIMITS = {
    "seconds": 120,
    "peak_rss_bytes": 4 * 2**30,
    "decoder_bytes": 50 * 10**6,
    "engines_bytes": 100 * 10**6,
}
LAUNCHES = {"9b": 350}
"""Most kernels that a decode step may launch."""
LAYERS = {"attention": 4, "mamba": 28}
ROUTED = {"9b": 0, "53b": 16}
"""Layers with experts to choose from."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Cost of building all engines of a model."""

    seconds: float
    """Of all stages: graphs, parser, audits and builder."""
    decoder_seconds: float
    peak_rss_bytes: int
    """Of the whole process, Python and TensorRT included."""
    decoder_bytes: int
    engines_bytes: int
    """Of all engines."""
    chunk_launches: int
    """Kernels of the decoder's profile for chunks, a plugin counted once."""
    decode_launches: int
    """Of its profile for steps."""
    num_weights: int
    """That the decoder takes as inputs."""
    weight_bytes: int
    """Of these."""


def main() -> int:
    """Measure every preset that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--presets", nargs="+", choices=ROUTED, default=list(ROUTED), help="which sizes"
    )
    parser.add_argument("--target", default="sm80", help="GPU architecture (default: sm80)")
    parser.add_argument(
        "--max-context", default=str(TRAINED_CONTEXT), help="tokens (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'preset':8}" + "".join(f"{field.name:>18}" for field in fields(Figures)))
    figures, misses = {}, []
    for preset in args.presets:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            options = ("--target", args.target, "--max-context", args.max_context)
            found, wrong = measure(preset, Path(scratch), options)
        figures[preset] = asdict(found)
        print(f"{preset:8}" + "".join(f"{value:>18,}" for value in figures[preset].values()))
        misses += [f"{preset}: {miss}" for miss in (*missed(preset, found), *wrong)]
    print("".join(f"missed: {miss}\n" for miss in misses), end="")
    print(
        json.dumps({"figures": figures, "limits": LIMITS, "launches": LAUNCHES, "missed": misses})
    )
    return 1 if misses else 0


def measure(preset: str, folder: Path, options: tuple[str, ...]) -> tuple[Figures, list[str]]:
    """Build one preset in a process of its own; returns what is wrong with it, too."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    longllava("synth", checkpoint, "--preset", preset, "--sparse")
    longllava("export", checkpoint, bundle, "--dtype", "bfloat16")
    # once to have the plugins compiled
    longllava("build", bundle, *options, "--stages", "projector")
    report, peak_rss_bytes = longllava("build", bundle, *options, "--force")
    stages = report["stages"]
    stage = stages["decoder"]
    decoder = EngineRecord.load(Path(report["folder"])).stages["decoder"]
    found = Figures(
        seconds=report["seconds"],
        decoder_seconds=stage["seconds"],
        peak_rss_bytes=peak_rss_bytes,
        decoder_bytes=stage["nbytes"],
        engines_bytes=sum(each["nbytes"] for each in stages.values()),
        chunk_launches=decoder.kernels["chunk"].launches,
        decode_launches=decoder.kernels["decode"].launches,
        num_weights=stage["num_weights"],
        weight_bytes=sum(part.nbytes for weight in decoder.weights for part in weight.parts),
    )
    return found, list(_wrong(preset, stage))


def missed(preset: str, found: Figures) -> list[str]:
    """Say which limits do not hold."""
    limits = LIMITS | ({"decode_launches": LAUNCHES[preset]} if preset in LAUNCHES else {})
    return [
        f"{name} must be at most {limit}, got {getattr(found, name)}"
        for name, limit in limits.items()
        if getattr(found, name) > limit
    ]


def _wrong(preset: str, stage: dict[str, Any]) -> list[str]:
    wanted = {
        "MambaScan": LAYERS["mamba"],
        "CausalConvWithState": LAYERS["mamba"],
        "SparseMoE": ROUTED[preset],
        "CachedAttention": LAYERS["attention"],
    }
    wanted = {name: number for name, number in wanted.items() if number}
    problems = []
    if stage["plugins"] != wanted:
        problems.append(f"plugins must be {wanted}, got {stage['plugins']}")
    if stage["attention"]:
        problems.append(f"attention of TensorRT's must be in no layer, got {stage['attention']}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
