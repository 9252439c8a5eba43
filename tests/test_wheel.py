"""The archives that are published: complete, alike whichever way they are built, and usable where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from longllava_trt.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "longllava_trt"
ROOMS = ("core", "export", "models", "plugins_trt", "reference", "runtime")
VERB_NAMES = [verb.__name__.rpartition(".")[2] for verb in VERBS]

pytestmark = pytest.mark.slow

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import longllava_trt

def walk(folders, prefix):
    for module in pkgutil.iter_modules(folders, prefix):
        if not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            print(loaded.__file__)
            # importing CPU kernels compiles them, for a minute; ruff bans the bare names there too
            if module.ispkg and module.name != "longllava_trt.plugins_trt.cpu":
                walk(loaded.__path__, module.name + ".")

walk(longllava_trt.__path__, "longllava_trt.")
taken = {"runtime", "export", "models", "core"} & sys.modules.keys()
assert not taken, f"the user's own modules were imported: {taken}"
"""

REVEAL_TYPE = """
from longllava_trt import LongLLaVA
model = LongLLaVA.from_bundle("bundle")
reveal_type(model.chat("What is this?", ["a.jpg"]))
"""


class Archives(NamedTuple):
    """Results of a build."""

    sdist: Path
    wheel: Path


class Installation(NamedTuple):
    """An environment that holds the wheel, and somebody's project beside it."""

    environment: Path
    project: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the user's project."""
        program, *arguments = command
        return run(self.environment / "bin" / program, *arguments, cwd=self.project)


def run(program: Path | str, *arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [program, *arguments], cwd=cwd, env=kept, capture_output=True, text=True, check=False
    )


def build(tree: Path, out: Path, *targets: str) -> None:
    """Build with the backend itself: no network, no isolated environment."""
    words = [word for target in targets for word in ("-t", target)]
    result = run(sys.executable, "-m", "hatchling", "build", "-d", out, *words, cwd=tree)
    assert result.returncode == 0, result.stderr


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def tracked_files() -> list[str]:
    """Return what git knows of the package, links resolved: paths as they are in the wheel."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: that the archives are complete stays unproven")
    result = run("git", "ls-files", "-z", "--", PACKAGE, *ROOMS, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    names = [name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [n if n.startswith(f"{PACKAGE}/") else f"{PACKAGE}/{n}" for n in names]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Both, built from this tree."""
    out = tmp_path_factory.mktemp("archives")
    build(ROOT, out, "sdist", "wheel")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Archives(sdist, wheel)


@pytest.fixture(scope="module")
def unpacked(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive's tree."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archives.sdist) as packed:
        packed.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="module")
def installation(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in an environment of its own; what it depends on is taken from ours, this checkout is not."""
    folder = tmp_path_factory.mktemp("installation")
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    result = run(*pip, "install", "--no-deps", "--no-index", archives.wheel, cwd=folder)
    assert result.returncode == 0, result.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    # a folder named in a .pth is searched, but its own .pth files are not read: our editable installation stays out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    project = folder / "project"
    project.mkdir()
    for name in ("runtime.py", "core.py"):
        (project / name).write_text("raise ImportError('this is the user\\'s own')\n")
    for name in ("export", "models"):
        (project / name).mkdir()
        (project / name / "__init__.py").write_text(
            "raise ImportError('this is the user\\'s own')\n"
        )
    return Installation(environment, project)


def test_wheel_built_from_the_source_archive_is_the_same(
    archives: Archives, unpacked: Path, tmp_path: Path
) -> None:
    build(unpacked, tmp_path, "wheel")
    (again,) = tmp_path.iterdir()
    assert again.name == archives.wheel.name
    assert again.read_bytes() == archives.wheel.read_bytes()


def test_source_archive_holds_each_room_once_behind_its_link(unpacked: Path) -> None:
    links = {f.name: f.readlink() for f in (unpacked / PACKAGE).iterdir() if f.is_symlink()}
    assert links == {room: Path("..") / room for room in ROOMS}
    assert all((unpacked / room / "__init__.py").is_file() for room in ROOMS)


def test_source_archive_can_be_packed_again(
    archives: Archives, unpacked: Path, tmp_path: Path
) -> None:
    build(unpacked, tmp_path, "sdist")
    assert (tmp_path / archives.sdist.name).read_bytes() == archives.sdist.read_bytes()


def test_wheel_holds_one_import_name(archives: Archives) -> None:
    tops = {name.partition("/")[0] for name in files_of(archives.wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {PACKAGE}
    assert len(tops) == 2


def test_wheel_holds_all_that_git_tracks(archives: Archives) -> None:
    packed = files_of(archives.wheel)
    assert [name for name in tracked_files() if name not in packed] == []
    assert {PurePosixPath(name).suffix for name in packed} >= {".py", ".cpp", ".h", ".map"}


def test_folders_of_modules_are_typed_packages(archives: Archives) -> None:
    packed = files_of(archives.wheel)
    folders = {str(PurePosixPath(name).parent) for name in packed if name.endswith(".py")}
    assert [folder for folder in folders if f"{folder}/__init__.py" not in packed] == []
    assert {f"{PACKAGE}/py.typed", *(f"{PACKAGE}/{room}/py.typed" for room in ROOMS)} <= set(packed)


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_verb_starts_in_a_project_with_the_rooms_names(
    verb: str, installation: Installation
) -> None:
    # `python -m` looks into the current folder first
    for command in (("longllava-trt",), ("python", "-m", PACKAGE)):
        result = installation.run(*command, verb, "--help")
        assert result.returncode == 0, result.stderr
        assert f"usage: longllava-trt {verb}" in result.stdout


def test_all_modules_import_in_a_project_with_the_rooms_names(installation: Installation) -> None:
    (installation.project / "everything.py").write_text(IMPORT_EVERYTHING)
    result = installation.run("python", "everything.py")
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    assert len(loaded) > 100, "found next to no module: the walk is broken"
    assert [f for f in loaded if not Path(f).is_relative_to(installation.environment)] == []


def test_types_reach_the_user(installation: Installation, tmp_path: Path) -> None:
    script = installation.project / "script.py"
    script.write_text(REVEAL_TYPE)
    python = installation.environment / "bin" / "python"
    settings = ("--strict", "--cache-dir", tmp_path, "--python-executable", python)
    # from another folder: mypy would take the user's `runtime.py` for a module of the project, which is its right
    result = run(sys.executable, "-m", "mypy", *settings, script, cwd=tmp_path)
    assert 'Revealed type is "str"' in result.stdout, result.stdout
    assert result.returncode == 0, result.stdout
