"""Packages from a folder of wheels, unpacked and importable, nothing installed."""

from __future__ import annotations

import atexit
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

__all__ = ["use_wheels"]


def use_wheels(folder: Path) -> Path:
    """Unpack wheels, and source archives of pure Python, and make what is in them importable first.

    Returns:
        Where they were unpacked; gone when the process ends.
    """
    site = Path(tempfile.mkdtemp(prefix="wheels-"))
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for source in sorted(folder.glob("*.tar.*")):
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                # without the archive's own folder, NAME-VERSION; Python before 3.11.4 has no filter to extract with
                target = (site / member.name.partition("/")[2]).resolve()
                content = archive.extractfile(member)
                if content and site.resolve() in target.parent.parents:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
    sys.path.insert(0, str(site))
    return site
