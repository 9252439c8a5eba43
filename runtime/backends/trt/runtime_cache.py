"""Kernels that TensorRT-RTX compiled on this machine, in a file beside the engines.

TensorRT-RTX finishes its kernels when an engine runs, for the GPU at hand. This file saves the next
process that work. It is worth nothing elsewhere: another version, another GPU or a damaged file is
named and ignored, and written anew.

    one line of JSON: format, TensorRT, GPU, and the sha256 of the rest
    the rest, in TensorRT's own format
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from longllava_trt.core.publish import atomic_file
from longllava_trt.plugins_trt.registry import TensorRT

__all__ = ["RuntimeCache"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_END = b"\n"


class RuntimeCache:
    """One cache for all contexts of a folder of engines; it must outlive them.

    Args:
        folder: Folder of the engines.
        tensorrt: TensorRT-RTX.
        gpu: Name of the GPU.
    """

    def __init__(self, folder: Path, tensorrt: TensorRT, *, gpu: str) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        self.path = folder / f"runtime-cache-{tensorrt.tag}-{name}.bin"
        """File that it is kept in."""
        self._made_by = {
            "format": f"format {_FORMAT}",
            "tensorrt": f"{tensorrt.flavour} {tensorrt.version}",
            "gpu": gpu,
        }
        self._cache: Any = None
        self._on_disk = ""
        """Digest of what the file holds, if it is of use."""
        self._is_writable = True

    def attach(self, config: Any) -> None:
        """Let a context take kernels from the cache and add to it.

        Args:
            config: TensorRT's IRuntimeConfig, of any engine of the folder.
        """
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        if not config.set_runtime_cache(self._cache):
            logger.warning("%s: not used, TensorRT refuses a runtime cache", self.path.name)

    def save(self) -> None:
        """Write the file, if the cache has changed; a folder that cannot be written is left alone."""
        found = None if self._cache is None else self._cache.serialize()
        if found is None:
            return
        kernels = bytes(memoryview(found))
        digest = hashlib.sha256(kernels).hexdigest()
        if digest == self._on_disk or not self._is_writable:
            return
        header = json.dumps(self._made_by | {"sha256": digest}).encode()
        try:
            atomic_file(self.path, header + _END + kernels)
        except OSError as err:
            self._is_writable = False
            logger.info(
                "%s: not kept (%s); the next process compiles its kernels again", self.path, err
            )
        else:
            self._on_disk = digest

    def _load(self) -> None:
        """Fill the new cache from the file; say why if it is of no use."""
        try:
            header, _, kernels = self.path.read_bytes().partition(_END)
        except FileNotFoundError:
            return
        except OSError as err:
            self._ignore(f"it cannot be read ({err.strerror})")
            return
        digest = hashlib.sha256(kernels).hexdigest()
        problem = self._problem(header, digest)
        if problem is None and not self._cache.deserialize(kernels):
            problem = "TensorRT refuses it, as after an update of the driver"
        if problem is None:
            self._on_disk = digest
        else:
            self._ignore(problem)

    def _problem(self, header: bytes, digest: str) -> str | None:
        try:
            found = json.loads(header)
            if not isinstance(found, dict) or found["sha256"] != digest:
                return "it is damaged"
        except (ValueError, KeyError):
            return "it is damaged"
        for name, wanted in self._made_by.items():
            if found.get(name) != wanted:
                return f"it was made with {found.get(name)}, and this is {wanted}"
        return None

    def _ignore(self, problem: str) -> None:
        logger.warning("%s: ignored, %s; kernels are compiled again", self.path, problem)
