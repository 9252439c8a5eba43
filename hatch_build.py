"""Keep the links to the rooms in the source archive: hatchling would pack each room twice."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "longllava_trt"


class LinkedRooms(BuildHookInterface):  # type: ignore[type-arg]
    """A last step for the source archive; the wheel holds each room once and needs none."""

    PLUGIN_NAME = "custom"

    def finalize(
        self,
        version: str,  # noqa: ARG002 - the interface
        build_data: dict[str, Any],  # noqa: ARG002
        artifact_path: str,
    ) -> None:
        """Put a link in the place of each linked folder's copy."""
        archive = Path(artifact_path)
        links = {f.name: f.readlink() for f in Path(self.root, PACKAGE).iterdir() if f.is_symlink()}
        packed = archive.read_bytes()
        archive.write_bytes(with_links(packed, links))


def with_links(packed: bytes, links: dict[str, Path]) -> bytes:
    """Return a gzipped archive in which these folders of the package are links.

    Args:
        packed: The archive, gzipped.
        links: Targets by folder name.
    """
    written, linked = io.BytesIO(), set[str]()
    with (
        tarfile.open(fileobj=io.BytesIO(packed)) as before,
        tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in before:
            room = room_of(member.name)
            if room not in links:
                after.addfile(member, before.extractfile(member))
            elif room not in linked:
                linked.add(room)
                link = tarfile.TarInfo(member.name.partition(f"/{room}/")[0] + f"/{room}")
                link.type, link.linkname = tarfile.SYMTYPE, str(links[room])
                link.mtime = member.mtime
                after.addfile(link)
    # the archive's own time, which hatchling fixes, so that two builds are equal
    return gzip.compress(written.getvalue(), mtime=int.from_bytes(packed[4:8], "little"))


def room_of(path: str) -> str:
    """Return the folder of the package that a file of the archive lies in, or nothing."""
    _, package, room, *below = [*path.split("/"), "", ""]
    return room if package == PACKAGE and below[0] else ""
