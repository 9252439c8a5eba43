"""Compiles the Triton kernels ahead of time, for GPUs that need not be there.

In worker processes of their own, two at a time: Triton reads its settings as it is imported, and a
process that interprets kernels cannot compile them. The workers' settings keep paths of this machine
out of what they write, so that equal sources give equal bytes.

    python -m longllava_trt.plugins_trt.library.aot --archs 80 --dtypes bf16 --formats none
        --heads 128x4 --share 0 1 --out FOLDER

is one worker: it prints how many kernels it will compile, then a line of JSON for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.errors import LongLLaVAError, MissingDependencyError
from longllava_trt.core.logs import Progress, ProgressEvent
from longllava_trt.plugins_trt.library.codegen import KernelImage

if TYPE_CHECKING:
    from longllava_trt.plugins_trt.launch_plans.plan import Variant

__all__ = ["compile_images"]

_WORKERS = 2


def compile_images(
    folder: Path,
    *,
    archs: Sequence[int],
    dtypes: Sequence[str],
    weight_formats: Sequence[str],
    heads: Sequence[tuple[int, int]],
    triton_cache: Path,
    progress: Progress | None = None,
) -> list[KernelImage]:
    """Compile every kernel for every architecture into a folder.

    Args:
        folder: Receives ``<stem>.cubin`` and ``<stem>.ptx`` of each.
        archs: Compute capabilities: 80 is 8.0.
        dtypes: Triton's names of T.
        weight_formats: Of experts: ``none``, ``int8``, ``int4``.
        heads: Of attention: elements of a head, and heads that share a key/value head.
        triton_cache: Where Triton keeps what it has compiled.
        progress: Hears of every kernel.

    Returns:
        The images, sorted by name, then by architecture.

    Raises:
        MissingDependencyError: If Triton is not installed.
        LongLLaVAError: If a kernel does not compile; holds the last lines of what Triton said.
    """
    if importlib.util.find_spec("triton") is None:
        raise MissingDependencyError(
            "plugins: Triton is needed to compile the kernels; install longllava-trt[plugins]"
        )
    options = ["--archs", *map(str, archs), "--dtypes", *dtypes, "--formats", *weight_formats]
    options += ["--heads", *(f"{head_dim}x{group}" for head_dim, group in heads)]
    environment = _environment(triton_cache)
    tally = _Tally(progress)

    def work(share: int) -> None:
        command = [
            sys.executable,
            "-m",
            "longllava_trt.plugins_trt.library.aot",
            "--out",
            str(folder),
            *options,
        ]
        lines = _run([*command, "--share", str(share), str(_WORKERS)], environment)
        tally.expect(int(next(lines)))
        for line in lines:
            tally.add(KernelImage(**json.loads(line)))

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(work, range(_WORKERS)))
    return sorted(tally.images, key=lambda image: (image.name, image.arch))


class _Tally:
    """Kernels that the workers have compiled up to now."""

    def __init__(self, progress: Progress | None) -> None:
        self.images: list[KernelImage] = []
        self._progress = progress
        self._lock = threading.Lock()
        self._total = 0
        self._unheard = _WORKERS
        self._report("")

    def expect(self, count: int) -> None:
        with self._lock:
            self._total += count
            self._unheard -= 1

    def add(self, image: KernelImage) -> None:
        with self._lock:
            self.images.append(image)
            self._report(image.stem)

    def _report(self, note: str) -> None:
        if self._progress:
            total = None if self._unheard else self._total
            self._progress(
                ProgressEvent("compile kernels", len(self.images), total, "kernels", note)
            )


def _import_root() -> str:
    """Return the folder that `longllava_trt` is imported from; importing it here would import all of it."""
    package = importlib.util.find_spec("longllava_trt")
    assert package is not None, "Bug: this module is in it"
    assert package.origin is not None, "Bug: it has an __init__.py"
    return str(Path(package.origin).parents[1])


def _environment(triton_cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return kept | {
        "OMP_NUM_THREADS": "1",
        # where the checkout is not installed, the worker must find it all the same
        "PYTHONPATH": _import_root(),
        "TRITON_CACHE_DIR": str(triton_cache),
        "TRITON_DISABLE_LINE_INFO": "1",
    }


def _run(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Yield the lines that a worker prints."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout
        assert worker.stderr
        said: list[str] = []
        # a worker that cannot write its warnings would wait for ever
        listener = threading.Thread(target=said.extend, args=(worker.stderr,))
        listener.start()
        yield from worker.stdout
        listener.join()
    if worker.returncode:
        last = "".join(said[-15:]).strip()
        raise LongLLaVAError(f"plugins: a kernel did not compile; Triton's last lines:\n{last}")


def _list_jobs(
    archs: Sequence[int],
    dtypes: Sequence[str],
    weight_formats: Sequence[str],
    heads: Sequence[tuple[int, int]],
) -> list[tuple[Variant, int]]:
    """Return each kernel with the architecture to compile it for; attention's tiles depend on it."""
    from longllava_trt.plugins_trt.kernels.cached_attention_variants import list_plugin_variants

    jobs = [(v, arch) for v in _list_variants(dtypes, weight_formats) for arch in archs]
    for name in dtypes:
        dtype: Any = name
        for arch in archs:
            for head_dim, group in heads:
                listed = list_plugin_variants(dtype, arch=arch, head_dim=head_dim, group=group)
                jobs += [(variant, arch) for variant in listed]
    return jobs


def _list_variants(dtypes: Sequence[str], weight_formats: Sequence[str]) -> list[Variant]:
    from longllava_trt.plugins_trt.kernels import sparse_moe_variants, variants

    found: dict[str, Variant] = {}
    for name in dtypes:
        dtype: Any = name
        listed = variants.list_variants(dtype)
        for weights in weight_formats:
            format_: Any = weights
            listed += sparse_moe_variants.list_variants(dtype, format_)
        found |= {variant.name: variant for variant in listed}
    return list(found.values())


def _compile(variant: Variant, arch: int, folder: Path) -> KernelImage:
    from longllava_trt.plugins_trt.kernels.resources import compile_kernel

    compiled = compile_kernel(variant, arch=arch)
    metadata, ptx = compiled.metadata, compiled.asm["ptx"]
    scratch = metadata.global_scratch_size + metadata.profile_scratch_size
    assert scratch == 0, f"Bug: {variant.name} wants scratch memory, and the host passes none"
    assert metadata.num_ctas == 1, f"Bug: {variant.name} wants clusters, and the host makes none"
    target = re.search(r"^\.target sm_\d+(\w*)", ptx, flags=re.MULTILINE)
    assert target, f"Bug: {variant.name}: PTX without a target"
    image = KernelImage(
        name=variant.name,
        symbol=metadata.name,
        arch=arch,
        threads=32 * metadata.num_warps,
        shared_bytes=metadata.shared,
        is_arch_specific=bool(target[1]),
    )
    (folder / f"{image.stem}.cubin").write_bytes(compiled.asm["cubin"])
    (folder / f"{image.stem}.ptx").write_text(ptx, encoding="utf-8")
    return image


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m longllava_trt.plugins_trt.library.aot")
    parser.add_argument("--archs", type=int, nargs="+", required=True)
    parser.add_argument("--dtypes", nargs="+", required=True)
    parser.add_argument("--formats", nargs="+", required=True)
    parser.add_argument("--heads", nargs="+", required=True)
    parser.add_argument("--share", type=int, nargs=2, metavar=("INDEX", "OF"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    heads = [(int(size), int(group)) for size, group in (h.split("x") for h in args.heads)]
    jobs = _list_jobs(args.archs, args.dtypes, args.formats, heads)
    index, workers = args.share
    share = jobs[index::workers]
    sys.stdout.write(f"{len(share)}\n")
    for variant, arch in share:
        sys.stdout.write(json.dumps(asdict(_compile(variant, arch, args.out))) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
