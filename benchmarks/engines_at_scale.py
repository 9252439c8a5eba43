"""Build the engines of the published sizes, without weights and without a GPU.

Checkpoints are sparse files: no weight is read, since engines take weights as inputs. The plugin library is compiled
beforehand. Prints a table and, as its last line, one JSON document. Exit status 1 if a limit is missed.

    python -m benchmarks.engines_at_scale
    python -m benchmarks.engines_at_scale --presets 9b --targets sm80 sm86 sm89 sm120
    python -m benchmarks.engines_at_scale --presets llava-1.5-7b llava-1.6-mistral-7b
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

LIMITS = {
    "seconds": 120,
    "peak_rss_bytes": 4 * 2**30,
    "decoder_bytes": 50 * 10**6,
    "engines_bytes": 100 * 10**6,
}
OF_PRESET = {
    "9b": {"decode_launches": 350, "decode_scratch": 300 * 10**6, "chunk_scratch": 10**9},
}
"""Further limits: kernels of a decode step, and bytes that the decoder works in."""
_JAMBA = {"CachedAttention": 4, "CausalConvWithState": 28, "MambaScan": 28}
PLUGINS = {
    "9b": _JAMBA,
    "53b": {**_JAMBA, "SparseMoE": 16},
    "llava-1.5-7b": {"CachedAttention": 32},
    "llava-1.5-13b": {"CachedAttention": 40},
    "llava-1.6-mistral-7b": {"CachedAttention": 32},
}
"""Plugins of the decoder."""


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
    chunk_scratch: int
    """Bytes that the decoder works in, by profile."""
    decode_scratch: int
    num_weights: int
    """That the decoder takes as inputs."""
    weight_bytes: int
    """Of these."""


def main() -> int:
    """Measure every preset that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=PLUGINS,
        default=["9b", "53b"],
        help="which sizes (default: 9b 53b)",
    )
    parser.add_argument(
        "--targets", nargs="+", default=["sm80"], help="GPU architectures (default: sm80)"
    )
    parser.add_argument("--max-context", help="tokens (default: what the model was trained for)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'':26}" + "".join(f"{field.name:>16}" for field in fields(Figures)))
    figures: dict[str, Any] = {}
    misses: list[str] = []
    limited = () if args.max_context is None else ("--max-context", args.max_context)
    for preset in args.presets:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            bundle = make_bundle(preset, Path(scratch))
            for target in args.targets:
                name = f"{preset} {target}"
                found, wrong = measure(preset, bundle, ("--target", target, *limited))
                figures[name] = asdict(found)
                print(f"{name:26}" + "".join(f"{v:>16,}" for v in figures[name].values()))
                misses += [f"{name}: {miss}" for miss in (*missed(preset, found), *wrong)]
    print("".join(f"missed: {miss}\n" for miss in misses), end="")
    limits = {"limits": LIMITS, "of_preset": OF_PRESET}
    print(json.dumps({"figures": figures, **limits, "missed": misses}))
    return 1 if misses else 0


def make_bundle(preset: str, folder: Path) -> Path:
    """Return a bundle of a published size, whose weights take no disk."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    longllava("synth", checkpoint, "--preset", preset, "--sparse")
    longllava("export", checkpoint, bundle, "--dtype", "bfloat16")
    return bundle


def measure(preset: str, bundle: Path, options: tuple[str, ...]) -> tuple[Figures, list[str]]:
    """Build one preset in a process of its own; returns what is wrong with it, too."""
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
        chunk_scratch=decoder.kernels["chunk"].activation_bytes,
        decode_scratch=decoder.kernels["decode"].activation_bytes,
        num_weights=stage["num_weights"],
        weight_bytes=sum(part.nbytes for weight in decoder.weights for part in weight.parts),
    )
    return found, list(_wrong(preset, stage))


def missed(preset: str, found: Figures) -> list[str]:
    """Say which limits do not hold."""
    limits = LIMITS | OF_PRESET.get(preset, {})
    return [
        f"{name} must be at most {limit}, got {getattr(found, name)}"
        for name, limit in limits.items()
        if getattr(found, name) > limit
    ]


def _wrong(preset: str, stage: dict[str, Any]) -> list[str]:
    problems = []
    if stage["plugins"] != PLUGINS[preset]:
        problems.append(f"plugins must be {PLUGINS[preset]}, got {stage['plugins']}")
    if stage["attention"]:
        problems.append(f"attention of TensorRT's must be in no layer, got {stage['attention']}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
