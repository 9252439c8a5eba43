"""TensorRT in either of its flavours, and the plugin creators that a library gives it.

Packages are imported only when they are needed. `tensorrt` and `tensorrt-rtx` have the same API as
far as this project uses it; comments name the differences.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.plugins_trt.spec import OPERATORS

__all__ = [
    "CREATOR_VERSION",
    "FLAVOURS",
    "LIBRARY_FILE",
    "TensorRT",
    "import_tensorrt",
    "load_plugins",
]

FLAVOURS = ("auto", "tensorrt", "tensorrt-rtx")
LIBRARY_FILE = "liblongllava_plugins.so"
CREATOR_VERSION = "1"
"""Version that TensorRT's ONNX parser requires for a node that names none, such as ours."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
_MACHINES = {62: "x86-64", 183: "aarch64"}
_TAGS = {"tensorrt": "trt", "tensorrt-rtx": "trtrtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """An imported TensorRT."""

    flavour: str
    """`tensorrt` or `tensorrt-rtx`."""
    version: str
    module: Any

    @property
    def tag(self) -> str:
        """Flavour and version in the name of a folder: `trtrtx-1.7.1`."""
        return f"{_TAGS[self.flavour]}-{'.'.join(self.version.split('.')[:3])}"


def import_tensorrt(flavour: str = "auto") -> TensorRT:
    """Import TensorRT, ready to parse plugin nodes.

    Args:
        flavour: One of `FLAVOURS`; `auto` is the full `tensorrt` if it is installed, else
            `tensorrt-rtx`.

    Raises:
        InputError: If there is no such flavour.
        MissingDependencyError: If it is not installed, or cannot be loaded.
    """
    if flavour not in FLAVOURS:
        raise InputError(f"flavour: must be one of {', '.join(FLAVOURS)}, got '{flavour}'")
    wanted = list(_MODULES) if flavour == "auto" else [flavour]
    for name in wanted:
        if importlib.util.find_spec(_MODULES[name]) is not None:
            return _import(name)
    extras = " or ".join(f"pip install 'longllava-trt[{_EXTRAS[name]}]'" for name in wanted)
    raise MissingDependencyError(f"TensorRT: {' or '.join(wanted)} is not installed; {extras}")


def _import(flavour: str) -> TensorRT:
    if flavour == "tensorrt-rtx":
        _name_rtx_library()
    try:
        module = importlib.import_module(_MODULES[flavour])
    except (ImportError, OSError) as err:
        raise MissingDependencyError(
            f"TensorRT: {flavour} is installed but cannot be loaded ({err}); "
            f"reinstall it: pip install --force-reinstall 'longllava-trt[{_EXTRAS[flavour]}]'"
        ) from err
    return TensorRT(flavour=flavour, version=module.__version__, module=module)


def _name_rtx_library() -> None:
    """Let the parser find the library under a name that the wheel lacks, `libtensorrt_rtx.so`.

    Without that name the first plugin node ends the process without a message (TensorRT-RTX 1.7.1).
    The parser looks in its own folder. If that is not writable, the parser is loaded through
    another folder of links that has the name.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return  # a system-wide installation has the name
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("libtensorrt_rtx.so.*"))
    name = folder / "libtensorrt_rtx.so"
    if name.exists() or not found:
        return
    try:
        name.symlink_to(found[0].name)
    except FileExistsError:
        pass  # another process made it at the same time
    except OSError:
        _load_through_links(folder, found[0])


def _load_through_links(folder: Path, library: Path) -> None:
    links = Path(tempfile.mkdtemp(prefix="longllava-trt-"))
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    for file in folder.glob("*.so.*"):
        (links / file.name).symlink_to(file)
    (links / "libtensorrt_rtx.so").symlink_to(library)
    # the bindings use a parser that is loaded already
    for file in sorted(links.glob("libtensorrt_onnxparser_rtx.so.*")):
        ctypes.CDLL(str(file))


def load_plugins(
    tensorrt: TensorRT,
    library: Path,
    *,
    remedy: str = "leave --plugins out to have it compiled here",
) -> Mapping[str, str]:
    """Register a library's creators for the rest of the process; return their versions by name.

    A second call with the same library does nothing. Another library replaces the one before:
    loaded engines keep their plugins, new engines get the new ones.

    Args:
        tensorrt: TensorRT that gets them.
        library: Plugin library.
        remedy: Advice in errors.

    Raises:
        InputError: If the library cannot be loaded, or is not made for this version's operators.
    """
    if not library.is_file():
        raise InputError(f"{library}: no such plugin library; {remedy}")
    machine, here = _machine(library), _machine(Path("/proc/self/exe"))
    if None not in {machine, here} and machine != here:
        # the loader would say that there is no such file
        raise InputError(
            f"{library}: must be made for this kind of processor ({here}), got {machine}; {remedy}"
        )
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    module = tensorrt.module
    registered = _registered.get(id(module))
    if registered is not None:
        if registered.digest == digest:
            return registered.versions
        module.get_plugin_registry().deregister_library(registered.handle)
        del _registered[id(module)]
    handle, versions = _load(module.get_plugin_registry(), library, remedy)
    _registered[id(module)] = _Registered(module, digest, handle, versions)
    return versions


@dataclass(frozen=True, slots=True)
class _Registered:
    module: Any
    """Kept, so that no other module gets its identity."""
    digest: str
    handle: Any
    versions: Mapping[str, str]


_registered: dict[int, _Registered] = {}
"""Libraries that this process gave each TensorRT, by the identity of its module.

Each TensorRT has one registry for a process.
"""


def _machine(file: Path) -> str | None:
    """Return the processor that an ELF file is for; None if it is none, or cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little")
    return _MACHINES.get(number, f"ELF machine {number}")


def _load(registry: Any, library: Path, remedy: str) -> tuple[Any, Mapping[str, str]]:
    before = _creators(registry)
    path = str(library.resolve())
    try:
        # one handle more, so that the code stays loaded: a network in a traceback still calls it
        ctypes.CDLL(path)
        handle = registry.load_library(path)
    except OSError as err:
        raise InputError(f"{library}: cannot be loaded ({err}); {remedy}") from err
    if handle is None:
        raise InputError(
            f"{library}: must be a plugin library, which exports getCreators; {remedy}"
        )
    versions = {
        name: version for name, version in _creators(registry).items() if name not in before
    }
    problems = [
        f"{spec.op_type} must be of version {CREATOR_VERSION}, got {versions.get(spec.op_type, 'none')}"
        for spec in OPERATORS
        if versions.get(spec.op_type) != CREATOR_VERSION
    ]
    if problems:
        registry.deregister_library(handle)
        raise InputError(
            f"{library}: not a plugin library of this version: {'; '.join(problems)}; {remedy}"
        )
    return handle, versions


def _creators(registry: Any) -> dict[str, str]:
    """Return version by name of the creators that TensorRT's ONNX parser can find."""
    return {c.name: c.plugin_version for c in registry.all_creators if not c.plugin_namespace}
