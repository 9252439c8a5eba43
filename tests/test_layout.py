"""What the tree promises: where things are, how large they are, what they are called."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "reference", "plugins_trt", "export", "runtime")
CODE = ("longllava_trt", *ROOMS, "tests", "benchmarks", "examples")
CODE_SUFFIXES = {".py", ".h", ".cpp", ".cu"}
MAX_LINES = 600
NAMELESS = {"utils", "util", "common", "helpers", "misc"}
TEXT_OVER = 1 << 20
"""Files above this many bytes are data, not text."""

# written so that this file does not hold what it looks for
FOREIGN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.-])/(?:work|root|home|Users)/"),
    "the host of a package registry": re.compile(
        r"\b(?:pypi\.org|files\.pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org)\b"
    ),
    "a secret": re.compile(r"BEGIN [A-Z ]*PRIVATE KEY|\b(?:ghp|hf)_[A-Za-z0-9]{30}"),
}


def code_files() -> list[Path]:
    return sorted(
        path for top in CODE for path in (ROOT / top).rglob("*") if path.suffix in CODE_SUFFIXES
    )


def repository_files() -> Iterator[Path]:
    """Yield what is ours: no folder that a tool made."""
    hidden_but_ours = {".ci", ".gitignore", ".pre-commit-config.yaml"}
    made = {"__pycache__", "build", "dist"}
    for top in ROOT.iterdir():
        if top.name in made or (top.name.startswith(".") and top.name not in hidden_but_ours):
            continue
        files = top.rglob("*") if top.is_dir() else [top]
        yield from (f for f in files if f.is_file() and made.isdisjoint(f.parts))


def module_names() -> list[str]:
    """Return every module of the installed package, those behind links too."""
    names = pkgutil.walk_packages([str(ROOT / "longllava_trt")], "longllava_trt.")
    return ["longllava_trt", *(m.name for m in names if not m.name.endswith("__main__"))]


def foreign_words(text: str) -> list[str]:
    return [what for what, pattern in FOREIGN.items() if pattern.search(text)]


@pytest.mark.parametrize("room", ROOMS)
def test_room_is_a_folder_at_the_root_behind_a_relative_link(room: str) -> None:
    link = ROOT / "longllava_trt" / room
    assert link.readlink() == Path("..") / room
    assert not (ROOT / room).is_symlink()
    found = importlib.import_module(f"longllava_trt.{room}").__file__
    assert found is not None, f"{room} has no __init__.py"
    assert Path(found).resolve().parent == ROOT / room, "another package of that name came first"


@pytest.mark.parametrize("package", ["longllava_trt", *ROOMS])
def test_types_are_visible_to_whom_installs_it(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("module", module_names())
def test_public_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    public = getattr(loaded, "__all__", ())
    assert len(set(public)) == len(public), "a name is listed twice"
    assert [name for name in public if not hasattr(loaded, name)] == []


def test_modules_stay_readable_in_one_sitting() -> None:
    lines = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in code_files()}
    assert len(lines) > 10, "found next to no code: the walk is broken"
    assert {str(f.relative_to(ROOT)): n for f, n in lines.items() if n > MAX_LINES} == {}


def test_modules_are_named_after_an_idea() -> None:
    assert [str(f.relative_to(ROOT)) for f in code_files() if f.stem.strip("_") in NAMELESS] == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == [], "tests/export would shadow export"


def test_files_hold_nothing_of_the_machine_they_were_written_on() -> None:
    found = {}
    for file in repository_files():
        content = file.read_bytes()
        if len(content) <= TEXT_OVER and (
            words := foreign_words(content.decode("utf-8", errors="ignore"))
        ):
            found[str(file.relative_to(ROOT))] = words
    assert found == {}


@pytest.mark.parametrize(
    "text", ["open('/" + "home/ann/x')", "https://" + "pypi" + ".org/simple", "hf_" + "a" * 30]
)
def test_foreign_words_are_noticed(text: str) -> None:
    assert foreign_words(text)


@pytest.mark.parametrize("text", ["a/home/b", "torch.library.custom_op", "../work/x", "hf_model"])
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert foreign_words(text) == []
