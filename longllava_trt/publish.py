"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from longllava_trt.errors import InputError

__all__ = ["published"]


@contextmanager
def published(folder: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Lend a staging folder beside the target, and put it in the target's place when the block succeeds.

    On any failure, an interrupt included, the target is what it was and the staging folder is gone.

    Args:
        folder: The target. Must be absent or empty, unless ``overwrite``.
        overwrite: Replace what is there, provided that it is of the same kind.
        marker: A file that tells a folder of this kind, so that nothing else is ever replaced.

    Raises:
        InputError: If the target is taken, or cannot be written.
    """
    folder = folder.absolute()
    staging = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.staging")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if taken and not overwrite:
            raise InputError(
                f"{folder}: must be absent or empty; choose another folder, or pass --overwrite"
            )
        if taken and not (folder / marker).is_file():
            raise InputError(
                f"{folder}: has no {marker}, so it is none of ours to overwrite; remove it yourself"
            )
        staging.mkdir(parents=True)
        yield staging
        retired = staging.with_suffix(".old")
        if taken:
            folder.rename(retired)
        staging.replace(folder)
        if taken:
            shutil.rmtree(retired)
    except OSError as err:
        raise InputError(f"{folder}: cannot be written ({err}); choose another folder") from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)
