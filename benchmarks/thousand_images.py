"""Show ever more images to a session, and measure memory, time per image, and what later questions cost.

Each number of images is a process of its own, which decodes synthetic files, ingests them and asks five questions. Prints a
table and, as its last line, one JSON document. Exit status 1 if a limit is missed.

    python -m benchmarks.thousand_images                          a tiny bundle, made here; 1000 images take minutes
    python -m benchmarks.thousand_images BUNDLE --images 10,100
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEMORY_RATIO = 1.1
"""Peak memory without the keys and values, at most images against fewest."""
TIME_RATIO = 1.3
"""Time per image, 1000 images against 100."""

_QUESTIONS = ("What is this?", "What else?", "How many are there?", "Which is first?", "And last?")
_NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Time and memory of a number of images."""

    images: int
    positions: int
    ingest_s: float
    first_question_s: float
    later_question_s: float
    """Mean of questions 2 to 5."""
    later_question_positions: float
    """Positions fed for each of these, answer included."""
    peak_rss_bytes: int
    kv_bytes: int
    stages_s: dict[str, float]

    @property
    def ms_per_image(self) -> float:
        """Milliseconds from file to context."""
        return 1000 * self.ingest_s / self.images

    @property
    def base_bytes(self) -> int:
        """Peak memory without the keys and values."""
        return self.peak_rss_bytes - self.kv_bytes


def main() -> int:
    """Measure every number of images that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: tiny, made here")
    parser.add_argument("--images", default="10,100,300,1000", metavar="N,N", help="how many")
    parser.add_argument("--threads", type=int, default=1, help="threads of one operator")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    counts = sorted(int(count) for count in args.images.split(","))
    if args.one is not None:
        print(json.dumps(asdict(measure(args.bundle, args.one, counts[0], args.threads))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or make_tiny(Path(scratch))
        write_images(Path(scratch) / "images", counts[-1])
        found = []
        print(
            f"{'images':>6}{'positions':>11}{'ms/image':>10}{'RSS-KV':>9}{'KV':>7}{'ratio':>7}{'later q.':>10}"
        )
        for count in counts:
            found.append(in_process(bundle, Path(scratch) / "images", count, args.threads))
            print(row(found[-1], found[0]), flush=True)
    missed = misses(found)
    print("".join(f"missed: {miss}\n" for miss in missed), end="")
    figures = [asdict(f) | {"ms_per_image": f.ms_per_image} for f in found]
    print(json.dumps({"bundle": str(args.bundle or "tiny"), "figures": figures, "missed": missed}))
    return 1 if missed else 0


def measure(bundle: Path, folder: Path, count: int, threads: int) -> Figures:
    """Ingest and ask, in this process."""
    from longllava_trt.runtime.backends.ort.decoder import Decoder
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    fed: list[int] = []
    step = Decoder.step

    def counted(self: Decoder, inputs_embeds: Any, state: Any) -> Any:
        fed.append(inputs_embeds.shape[1])
        return step(self, inputs_embeds, state)

    Decoder.step = counted  # type: ignore[method-assign]
    model = LongLLaVA.from_bundle(bundle, RunOptions(backend="ort", num_threads=threads))
    session = model.session()
    # load all stages and compile what is compiled at first use
    session.ask("Hello", sorted(folder.iterdir())[:1], max_new_tokens=2)
    begin = time.perf_counter()
    shown = session.ingest(sorted(folder.iterdir())[:count])
    ingest_s = time.perf_counter() - begin
    asked = []
    for question in _QUESTIONS:
        begin, fed[:] = time.perf_counter(), []
        session.ask(question, max_new_tokens=_NEW_TOKENS)
        asked.append((time.perf_counter() - begin, sum(fed)))
    state = session.sequence.state.state_dict()
    return Figures(
        images=shown.num_images,
        positions=shown.num_positions,
        ingest_s=ingest_s,
        first_question_s=asked[0][0],
        later_question_s=sum(seconds for seconds, _ in asked[1:]) / 4,
        later_question_positions=sum(positions for _, positions in asked[1:]) / 4,
        peak_rss_bytes=peak_rss_bytes(),
        kv_bytes=sum(a.nbytes for n, a in state.items() if n.endswith((".key", ".value"))),
        stages_s=shown.timings,
    )


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def in_process(bundle: Path, folder: Path, count: int, threads: int) -> Figures:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, str(bundle), "--one", str(folder)]
    command += ["--images", str(count), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def make_tiny(folder: Path) -> Path:
    """Write a tiny checkpoint and its bundle."""
    from longllava_trt.export.bundle import export_bundle
    from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

    write_checkpoint(folder / "checkpoint", preset="tiny")
    export_bundle(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


def write_images(folder: Path, count: int) -> None:
    """Write seeded pictures of 640 by 480 pixels, JPEG and PNG by turns."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = coarse.resize((640, 480), Image.Resampling.BICUBIC)
        if i % 2:
            picture.save(folder / f"{i:04}.png", compress_level=1)
        else:
            picture.save(folder / f"{i:04}.jpg", quality=90)


def row(found: Figures, first: Figures) -> str:
    """Return one line of the table."""
    mib = 2**20
    return (
        f"{found.images:6}{found.positions:11,}{found.ms_per_image:10.1f}{found.base_bytes / mib:9.0f}"
        f"{found.kv_bytes / mib:7.1f}{found.base_bytes / first.base_bytes:7.3f}{found.later_question_s:9.2f}s"
    )


def misses(found: list[Figures]) -> list[str]:
    """Say which limits do not hold."""
    first, last = found[0], found[-1]
    by_count = {f.images: f for f in found}
    missed = []
    if (ratio := last.base_bytes / first.base_bytes) > MEMORY_RATIO:
        missed.append(f"memory must grow by at most {MEMORY_RATIO}, got {ratio:.3f}")
    if 100 in by_count and 1000 in by_count:
        ratio = by_count[1000].ms_per_image / by_count[100].ms_per_image
        if ratio > TIME_RATIO:
            missed.append(f"time per image must grow by at most {TIME_RATIO}, got {ratio:.2f}")
    missed += [
        f"later questions fed {f.later_question_positions} positions after {f.images} images"
        for f in found
        if f.later_question_positions > 64
    ]
    return missed


if __name__ == "__main__":
    sys.exit(main())
