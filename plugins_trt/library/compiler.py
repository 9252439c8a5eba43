"""Compiles the C++ host code with whatever compiler the machine has."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longllava_trt.core.errors import LongLLaVAError, MissingDependencyError

__all__ = ["compiler_version", "link_library"]

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden")
# the first error alone: those that follow from it would push it out of the message
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wfatal-errors")
# no build id: equal sources give equal bytes; z defs: nothing is left for TensorRT to provide
_LINK_FLAGS = ("-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,defs", "-ldl", "-pthread")
_WORKERS = 2


def compiler_version() -> str:
    """Return what the C++ compiler calls itself.

    Raises:
        MissingDependencyError: If there is none.
    """
    done = subprocess.run([*_command(), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


def link_library(
    folder: Path, sources: Path, *, headers: Path, name: str, flags: Sequence[str] = ()
) -> None:
    """Compile the sources of two folders and link them into a shared library.

    Args:
        folder: Holds generated sources; receives the objects and the library.
        sources: Holds what was written by hand, and `shim/`, CUDA's two types for who has no CUDA.
        headers: TensorRT's.
        name: File name of the library.
        flags: More flags for compiling and linking, such as a sanitizer's.

    Raises:
        MissingDependencyError: If there is no compiler.
        LongLLaVAError: If something does not compile; holds the compiler's last lines.
    """
    # TensorRT's own headers use what they deprecate: -isystem keeps that quiet
    system = ["-isystem", str(headers), "-isystem", str(sources / "shim")]
    include = ["-I", str(sources), "-I", ".", f"-ffile-prefix-map={sources}=csrc"]
    files = [*sorted(sources.glob("*.cpp")), Path("tables.cpp"), Path("images.S")]

    def compile_one(file: Path) -> str:
        made = f"{file.stem}.o"
        _run([*_FLAGS, *flags, *_WARNINGS, *include, *system, "-c", str(file), "-o", made], folder)
        return made

    with ThreadPoolExecutor(_WORKERS) as pool:
        objects = list(pool.map(compile_one, files))
    exports = f"-Wl,--version-script={sources / 'exports.map'}"
    _run([*flags, *objects, *_LINK_FLAGS, exports, f"-Wl,-soname,{name}", "-o", name], folder)


def _run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(
        [*_command(), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-15:])
        raise LongLLaVAError(
            f"plugins: the C++ compiler refused {arguments[-3]}; its last lines:\n{last}"
        )


def _command() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"plugins: the C++ compiler '{command[0]}' was not found; install g++, or set CXX"
        )
    return command
