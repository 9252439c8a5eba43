"""Builds liblongllava_plugins.so: the kernels of every GPU, and the C++ that launches them.

    python -m longllava_trt.plugins_trt.library.build [--arch 80 86 90 120] [--dtype bf16 fp16 fp32]
        [--format none int8 int4] [--heads 128x4] [--out FILE]

Triton compiles the kernels, g++ the host code; neither a GPU nor CUDA is needed. What was built once
is found again by the digest of everything that went in, and built again only if any of it differs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longllava_trt.core.dtypes import FLOATS
from longllava_trt.core.errors import ConfigError, InputError, LongLLaVAError
from longllava_trt.core.logs import Progress, terminal_progress
from longllava_trt.core.weight_formats import CODEC_NAMES
from longllava_trt.plugins_trt.library.aot import compile_images
from longllava_trt.plugins_trt.library.codegen import PLUGIN_VERSION, write_sources
from longllava_trt.plugins_trt.library.compiler import compiler_version, link_library
from longllava_trt.plugins_trt.library.headers import TensorRTHeaders, find_headers

__all__ = ["LIBRARY_NAME", "PUBLISHED_HEADS", "PluginLibrary", "build_library"]

logger = logging.getLogger(__name__)

LIBRARY_NAME = "liblongllava_plugins.so"
_HERE = Path(__file__).resolve().parents[1]
_SOURCES = (
    *("kernels/*.py", "launch_plans/*.py", "csrc/*.*", "csrc/shim/*.*"),
    *("spec.py", "plugin_formats.py", "library/*.py"),
    *("../core/dtypes.py", "../core/weight_formats.py"),
)
_ARCHS = (80, 86, 90, 120)
_DTYPES = tuple(sorted(dtype.triton for dtype in FLOATS))
_OLDEST = 80
PUBLISHED_HEADS = ((128, 4),)
"""LongLLaVA's: elements of a head, and heads that share a key/value head."""
_HEAD_DIM_STEP = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginLibrary:
    """A library that was built, and what is in it."""

    path: Path
    digest: str
    """SHA-256 of everything that it was built from: sources, tools, options."""
    version: str
    """Version of the plugins in TensorRT."""
    archs: tuple[int, ...]
    dtypes: tuple[str, ...]


def build_library(
    *,
    archs: Sequence[int] = _ARCHS,
    dtypes: Sequence[str] = _DTYPES,
    weight_formats: Sequence[str] = CODEC_NAMES,
    heads: Sequence[tuple[int, int]] = PUBLISHED_HEADS,
    include: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PluginLibrary:
    """Return the library for some GPUs, from the cache if it was built before.

    Args:
        archs: Compute capabilities: 80 is 8.0. GPUs of the same major and a higher minor number run
            the same code if they have the shared memory: 8.6 and 8.9 have less than 8.0. Any newer
            GPU translates that of the oldest one, unless that is 90 or more.
        dtypes: Of the models that it is to run, from bf16, fp16, fp32.
        weight_formats: Of the experts that it is to run, from none, int8, int4.
        heads: Of the attention that it is to run: elements of a head, a multiple of 16, and heads
            that share a key/value head.
        include: TensorRT's headers; `find_headers` says where else they are looked for.
        cache: Where builds are kept; by default LONGLLAVA_CACHE, or the user's cache folder.
        progress: Hears of every kernel.

    Raises:
        ConfigError: If an option has no such value.
        MissingDependencyError: If the compiler, the headers or Triton are missing.
        LongLLaVAError: If something does not compile; holds the compiler's last lines.
    """
    options: dict[str, list[Any]] = {
        "archs": _choose_archs(archs),
        "dtypes": _choose("dtype", dtypes, _DTYPES),
        "weight_formats": _choose("weight format", weight_formats, CODEC_NAMES),
        "heads": _choose_heads(heads),
    }
    cache = cache or _default_cache()
    headers = find_headers(include, cache=cache)
    digest = _digest(options, headers, compiler_version())
    library = PluginLibrary(
        path=cache / "plugins" / digest / LIBRARY_NAME,
        digest=digest,
        version=PLUGIN_VERSION,
        archs=tuple(options["archs"]),
        dtypes=tuple(options["dtypes"]),
    )
    if not library.path.is_file():
        _build(library, options, headers=headers, cache=cache, progress=progress)
    return library


def _build(
    library: PluginLibrary,
    options: dict[str, list[Any]],
    *,
    headers: TensorRTHeaders,
    cache: Path,
    progress: Progress | None,
) -> None:
    started = time.monotonic()
    library.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as name:
        folder = Path(name)
        images = compile_images(folder, **options, triton_cache=cache / "triton", progress=progress)
        write_sources(folder, images, heads=options["heads"], digest=library.digest)
        link_library(folder, _HERE / "csrc", headers=headers.folder, name=LIBRARY_NAME)
        (folder / LIBRARY_NAME).replace(library.path)
    logger.info(
        "build plugins: %.1f s, %d kernels, %.1f MB, TensorRT headers %s",
        time.monotonic() - started,
        len(images),
        library.path.stat().st_size / 1e6,
        headers.version,
    )


def _choose(what: str, chosen: Sequence[str], known: tuple[str, ...]) -> list[str]:
    unknown = sorted(set(chosen) - set(known))
    if unknown or not chosen:
        raise ConfigError(
            f"plugins: expected {what}s from {', '.join(known)}; got {', '.join(unknown) or 'none'}"
        )
    return [name for name in known if name in chosen]


def _choose_archs(archs: Sequence[int]) -> list[int]:
    if not archs or min(archs) < _OLDEST:
        raise ConfigError(
            f"plugins: expected compute capabilities from {_OLDEST} (A100) on, got "
            f"{list(archs)}; older GPUs have no bfloat16"
        )
    return sorted(set(archs))


def _choose_heads(heads: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    wrong = [(d, g) for d, g in heads if d < 1 or d % _HEAD_DIM_STEP or g < 1]
    if wrong or not heads:
        raise ConfigError(
            f"plugins: expected heads of a multiple of {_HEAD_DIM_STEP} elements, and groups of at "
            f"least 1; got {', '.join(f'{d}x{g}' for d, g in wrong) or 'none'}"
        )
    return sorted(set(heads))


def _parse_heads(text: str) -> tuple[int, int]:
    head_dim, group = text.split("x")
    return int(head_dim), int(group)


def _digest(options: dict[str, list[Any]], headers: TensorRTHeaders, compiler: str) -> str:
    sha256 = hashlib.sha256()
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        # what was built elsewhere with Triton is none of this
        triton = "none"
    tools = {"triton": triton, "compiler": compiler, "headers": headers.version}
    sha256.update(json.dumps({"options": options, "tools": tools}, sort_keys=True).encode())
    files = (file for pattern in _SOURCES for file in sorted(_HERE.glob(pattern)))
    for file in files:
        content = file.read_bytes()
        sha256.update(f"{file.relative_to(_HERE)} {len(content)}\n".encode() + content)
    return sha256.hexdigest()


def _default_cache() -> Path:
    chosen = os.environ.get("LONGLLAVA_CACHE")
    if chosen:
        return Path(chosen).absolute()
    user, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    folders = [Path(user)] if user else [Path(home, ".cache")] if home else []
    for folder in (*folders, Path(tempfile.gettempdir(), f"user-{os.getuid()}")):
        try:
            cache = folder / "longllava-trt"
            cache.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError:
            continue
        # nobody else may put a library there for us to load
        if os.access(cache, os.W_OK) and cache.stat().st_uid == os.getuid():
            return cache.absolute()
    raise InputError(
        "plugins: no folder for the cache can be written; set LONGLLAVA_CACHE to one that can"
    )


def _main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m longllava_trt.plugins_trt.library.build")
    add = functools.partial(parser.add_argument, nargs="+")
    add("--arch", type=int, default=_ARCHS, help="compute capabilities (default 80 86 90 120)")
    add("--dtype", choices=_DTYPES, default=_DTYPES, help="dtypes (default all)")
    add("--format", choices=CODEC_NAMES, default=CODEC_NAMES, help="weight formats (default all)")
    add(
        "--heads", type=_parse_heads, default=PUBLISHED_HEADS, help="HEAD_DIMxGROUP (default 128x4)"
    )
    parser.add_argument("--include", type=Path, help="folder of TensorRT's headers")
    parser.add_argument("--out", type=Path, help="copy the library to this file")
    args = parser.parse_args(argv)
    try:
        with terminal_progress() as progress:
            library = build_library(
                archs=args.arch,
                dtypes=args.dtype,
                weight_formats=args.format,
                heads=args.heads,
                include=args.include,
                progress=progress,
            )
    except LongLLaVAError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    if args.out:
        shutil.copyfile(library.path, args.out)
    sys.stdout.write(f"{args.out or library.path}\n{library.version} {library.digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
