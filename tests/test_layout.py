"""Promises of the tree: places, sizes and names of things."""

import ast
import importlib
import pkgutil
import re
import tomllib
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


def map_of(package: Path) -> list[str]:
    """Return the files and folders that a package's docstring names; `*` stands for any characters."""
    text = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
    return re.findall(r"(?<![\w/.*`])[\w/*]+(?:\.py\b|/(?=\s))", text)


def missing_from(package: Path) -> list[str]:
    """Return what a package's docstring names and neither its folder nor the root holds."""
    return [
        name for name in map_of(package) if not any([*package.parent.glob(name), *ROOT.glob(name)])
    ]


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


def test_the_face_holds_nothing_but_the_roof_and_links_to_the_rooms() -> None:
    links = {f.name for f in (ROOT / "longllava_trt").iterdir() if f.is_symlink()}
    assert links == set(ROOMS)


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {f.parent for r in ("longllava_trt", *ROOMS) for f in (ROOT / r).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()] == []


def test_layers_of_the_import_contract_are_all_packages() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    named = {name for layer in layers for name in re.findall(r"longllava_trt\.(\w+)", layer)}
    below = (m.name for m in pkgutil.iter_modules([str(ROOT / "longllava_trt")]))
    assert named == {name for name in below if name != "__main__"}


@pytest.mark.parametrize(
    "package",
    sorted(f for t in CODE if t != "tests" for f in (ROOT / t).rglob("__init__.py") if map_of(f)),
    ids=lambda f: str(f.parent.relative_to(ROOT)),
)
def test_map_of_a_package_names_what_exists(package: Path) -> None:
    assert missing_from(package) == []


def test_a_map_that_names_something_else_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "__init__.py"
    package.write_text('"""A room.\n\nhere.py  is\ngone.py  was\nno*.py  neither\nold/  nor\n"""\n')
    (tmp_path / "here.py").touch()
    assert missing_from(package) == ["gone.py", "no*.py", "old/"]


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
