"""The conversation: questions and commands from a pipe, answers as they would be given one by one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Chat = Callable[..., Any]


@pytest.fixture
def chat(cli: Callable[..., Any], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Run `chat` with these lines on stdin and these options."""

    def run(lines: str, *options: Any) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return cli("chat", tiny_bundle, "--max-new-tokens", 6, "--threads", 1, *options)

    return run


@pytest.fixture
def stills(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a still.png", tmp_path / "b.jpg"]
    for i, path in enumerate(paths):
        Image.effect_mandelbrot((40 + i, 30), (-2, -1, 1, 1), 20 + i).save(path)
    return paths


def documents(result: Any) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_answers_are_those_of_single_questions(
    chat: Chat, cli: Callable[..., Any], tiny_bundle: Path, stills: list[Path]
) -> None:
    ready, *answers = documents(
        chat("What?\nWho?\n\nWhat?\n", "--image", stills[0], "--forget", "--json")
    )
    assert ready["num_images"] == 1
    assert [answer["question"] for answer in answers] == ["What?", "Who?", "What?"]
    ask = ["run", tiny_bundle, "--image", stills[0], "--max-new-tokens", 6, "--json", "-q"]
    for answer in answers:
        alone = json.loads(cli(*ask, "-p", answer["question"]).out)
        assert answer["token_ids"] == alone["token_ids"]
        assert answer["prompt_tokens"] == alone["prompt_tokens"]
        assert set(answer["timings"]["stages_s"]) == set(alone["timings"]["stages_s"])


def test_turns_are_remembered(chat: Chat) -> None:
    _, first, second, third = documents(chat("Hello\nHello\n/rewind 0\n", "--json"))
    assert second["prompt_tokens"] > 2 * first["prompt_tokens"]
    assert third["num_turns"] == third["num_positions"] == 0


def test_text_streams_to_stdout_and_all_else_to_stderr(chat: Chat, stills: list[Path]) -> None:
    result = chat("What?\n/info\n/help\n/quit\nnever asked\n", "--image", stills[0])
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    assert "1 images" in result.err
    assert "/append FILE" in result.err
    assert "prefill" in result.err
    quiet = chat("What?\n", "--image", stills[0], "-q")
    assert (quiet.out, quiet.err) == (result.out, "")


def test_a_session_is_saved_loaded_and_goes_on(
    chat: Chat, stills: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "my session"
    lines = f"Hello\n/append '{stills[0]}' {stills[1]}\n/save '{folder}'\nWhat?\n"
    *_, saved, answer = documents(chat(lines, "--json"))
    assert saved["num_images"] == 2
    ready, again = documents(chat("What?\n", "--session", folder, "--json"))
    assert (ready["num_images"], ready["num_turns"]) == (2, 1)
    assert again["token_ids"] == answer["token_ids"]
    lines = f"/load '{folder}'\n/rewind 1\n/append {stills[1]}\nWhat?\n"
    loaded, rewound, appended, last = documents(chat(lines, "--json"))[1:]
    assert [d["num_images"] for d in (loaded, rewound, appended)] == [2, 1, 2]
    assert last["token_ids"] == answer["token_ids"]


def test_skipped_images_are_noted(chat: Chat, stills: list[Path]) -> None:
    stills[0].write_bytes(b"")
    options = ["--image", stills[0], "--image", stills[1], "--on-broken", "skip"]
    ready, answer = documents(chat("What?\n", *options, "--json"))
    assert (ready["num_images"], answer["num_images"]) == (1, 1)
    assert ready["skipped"][0].startswith(f"image 1 ({stills[0]}): the file is empty")
    assert "skipped: image 1" in chat("", *options).err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/fly", "there is no command /fly"),
        ("/append", "needs the names of images"),
        ("/append missing.png", "image 1 (missing.png): cannot be opened"),
        ("/rewind two", "needs one number"),
        ("/rewind 3", "must be from 0 to 0"),
        ("/save", "needs one folder"),
        ("/load nowhere", "not a session"),
        ("/save 'a", "quote names"),
        ("<image>?", "got 1 for 0 images"),
    ],
)
def test_a_wrong_line_ends_a_chat_without_a_terminal(chat: Chat, line: str, message: str) -> None:
    result = chat(f"{line}\nnever asked\n", "-q")
    assert result.code == 2
    assert message in result.message


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_wrong_line_is_only_told_at_a_terminal(
    cli: Callable[..., Any], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("/fly\nHello\n"))
    result = cli("chat", tiny_bundle, "--max-new-tokens", 6, "-q")
    assert result.code == 0
    assert "error: chat: there is no command /fly" in result.err
    assert len(result.out.splitlines()) == 1


def test_an_interrupted_start_leaves_a_session_at_a_terminal(
    cli: Callable[..., Any],
    tiny_bundle: Path,
    stills: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from longllava_trt.runtime.session import Session

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "ingest", interrupted)
    monkeypatch.setattr(sys, "stdin", Terminal("Hello\n"))
    options = ["--image", stills[0], "--max-new-tokens", 6, "--json", "-q"]
    result = cli("chat", tiny_bundle, *options)
    assert "interrupted" in result.err
    assert [document["num_images"] for document in documents(result)] == [0]


def test_the_prompt_is_shown_before_each_answer(chat: Chat, stills: list[Path]) -> None:
    result = chat("Hello\nAnd?\n", "--image", stills[0], "--show-prompt", "-q")
    first = "<|startoftext|><|User|>\n<img><image></img>\nHello\n<|startoftext|><|Assistant|>\n"
    _, hello, again = result.err.split("prompt of ")
    ids, text = hello.split(" ids and 1 image:\n")
    assert text == first + "\n"
    assert int(again.split(" ids")[0]) > int(ids)
    assert again.split(":\n", 1)[1].startswith(first)
    assert "Hello" not in result.out
    _, answer, _ = documents(chat("Hello\nAnd?\n", "--image", stills[0], "--show-prompt", "--json"))
    assert answer["prompt"] == {"text": first, "num_ids": int(ids), "num_images": 1}
    assert answer["prompt"]["num_ids"] < answer["prompt_tokens"]
