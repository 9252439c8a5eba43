"""Documents, held against the code: links, commands, paths, tables, messages, examples."""

import ast
import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from longllava_trt.cli import VERBS, build_parser
from longllava_trt.core.manifest import FileRecord, Manifest, StageRecord, WeightRecord
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.llava_jamba.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ROOMS = ("longllava_trt", "core", "models", "export", "runtime", "plugins_trt", "reference")
PROGRAM = "longllava-trt"
IDS = [d.name for d in DOCUMENTS]

PUBLISHED = PRESETS["9b"]


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return each fenced block's language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that a page gives its headings."""
    headings = re.findall(r"^#+ +(.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(document: Path, text: str) -> Iterator[str]:
    """Yield links to our own files and headings that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text))):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        page = text if file == document else ""
        if not file.exists() or (anchor and anchor not in anchors(page or read(file))):
            yield target


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each of our commands: whole lines of blocks, and code within a line."""
    for _, block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            stripped = line.strip().removeprefix("$ ")
            if stripped.startswith(f"{PROGRAM} "):
                yield shlex.split(stripped.partition(" | ")[0], comments=True)[1:]
    for code in re.findall(rf"`{PROGRAM} ([^`]+)`", prose(text)):
        yield shlex.split(code)


def is_refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the real parser has against a command; a verb alone is a name, not a command."""
    if len(arguments) == 1 and arguments[0] in verb_names():
        return ""
    try:
        build_parser().parse_args(arguments)
    except SystemExit as stop:
        return capsys.readouterr().err if stop.code else ""
    return ""


def verb_names() -> set[str]:
    return {verb.__name__.rpartition(".")[2] for verb in VERBS}


def stage_table() -> str:
    """Return docs/stages.md's table, from the contracts."""
    lines = ["| stage | | name | shape | dtype |", "| --- | --- | --- | --- | --- |"]
    for stage, spec in stage_specs(PUBLISHED, "bfloat16").items():
        for direction, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for name, tensor in without_layers(tensors).items():
                shape = ", ".join(map(str, tensor.shape))
                lines.append(f"| `{stage}` | {direction} | {name} | [{shape}] | `{tensor.dtype}` |")
    return "\n".join(lines)


def without_layers(tensors: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    """Give the tensors that differ in the layer alone one name, which says how many there are."""
    rows: dict[str, TensorSpec] = {}
    layers: dict[str, list[str]] = {}
    for tensor in tensors:
        name = re.sub(r"\.\d+\.", ".{layer}.", tensor.name)
        layers.setdefault(name, []).extend(re.findall(r"\.(\d+)\.", tensor.name))
        assert rows.setdefault(name, tensor).shape == tensor.shape, f"{name} differs by layer"
    which = {
        name: f" for layers {', '.join(n)}" if len(n) < 5 else f" for {len(n)} layers"
        for name, n in layers.items()
        if n
    }
    return {f"`{name}`{which.get(name, '')}": tensor for name, tensor in rows.items()}


@functools.cache
def messages() -> str:
    """Return every text of the code, what is inserted shown as an ellipsis."""
    found = []
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(read(file))):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join([*found, read(ROOT / "Makefile")])


def quoted_messages(text: str) -> Iterator[str]:
    """Yield the code in the first column of every table but its head."""
    for row in re.findall(r"^\| (.+?) \| ", text, flags=re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document, read(document))) == []


@pytest.mark.parametrize(
    "text", ["[a](docs/no-such.md)", "[a](#nowhere)\n# Here", "[a](docs/parity.md#nowhere)"]
)
def test_a_broken_link_is_noticed(text: str) -> None:
    assert len(list(broken_links(README, text))) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_are_those_of_the_parser(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {shlex.join(c): is_refused(c, capsys) for c in commands(read(document))}
    assert {c: problem for c, problem in refused.items() if problem} == {}


def test_the_readme_holds_commands() -> None:
    assert len(list(commands(read(README)))) > 10


@pytest.mark.parametrize(
    "text",
    [
        "`longllava-trt exprot`",
        "```sh\nlongllava-trt run bundle\n```",
        "`longllava-trt run b -q -v`",
    ],
    ids=["verb", "missing-option", "exclusive-options"],
)
def test_a_wrong_command_is_noticed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [bool(is_refused(c, capsys)) for c in commands(text)] == [True]


def test_every_verb_is_in_the_readme() -> None:
    assert {c[0] for c in commands(read(README))} >= verb_names()


def test_the_readme_stays_short() -> None:
    assert len(read(README).splitlines()) <= 200


def test_code_map_names_what_exists_and_every_room() -> None:
    after = read(README).partition("## Code map\n")[2]
    paths = {line.split()[0] for line in code_blocks(after)[0][1].splitlines()}
    assert {p for p in paths if not (ROOT / p).exists()} == set()
    packages = {
        f"{f.parent.relative_to(ROOT)}/" for r in ROOMS for f in (ROOT / r).rglob("__init__.py")
    }
    assert packages - paths == set()


def test_stage_table_is_that_of_the_contracts() -> None:
    page = read(ROOT / "docs" / "stages.md")
    match = re.search(r"<!-- stages: begin -->\n(.*?)\n<!-- stages: end -->", page, re.DOTALL)
    assert match, "docs/stages.md has lost its markers"
    assert match[1] == stage_table(), f"put this into docs/stages.md:\n{stage_table()}"


@pytest.mark.parametrize("record", [Manifest, StageRecord, WeightRecord, FileRecord])
def test_manifest_fields_are_documented(record: type) -> None:
    page = read(ROOT / "docs" / "stages.md").partition("## manifest.json")[2]
    assert [f.name for f in fields(record) if f"`{f.name}`" not in page] == []


def test_quoted_messages_are_in_the_code() -> None:
    quoted = [
        q for q in quoted_messages(read(ROOT / "docs" / "troubleshooting.md")) if q != "message"
    ]
    assert len(quoted) > 30, "found next to no message: the search is broken"
    assert [q for q in quoted if q not in messages()] == []


def test_pictures_are_whole_and_shown() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*.svg"))
    assert pictures
    shown = "".join(map(read, DOCUMENTS))
    for picture in pictures:
        assert ET.parse(picture).getroot().get("viewBox")
        assert f"images/{picture.name}" in shown


def test_python_of_the_readme_runs(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(tiny_bundle)
    for name, colour in (("a.jpg", "red"), ("b.jpg", "navy")):
        Image.new("RGB", (61, 40), colour).save(name)
    blocks = [code for language, code in code_blocks(read(README)) if language == "python"]
    for code in blocks:
        exec(compile(code, str(README), "exec"), {})  # noqa: S102 - our own text
    assert blocks
    assert re.search(
        r"^\d+ prompt tokens, 64 new ones", capsys.readouterr().out, flags=re.MULTILINE
    )
