"""`longllava-trt chat`: show images once, then ask about them until the input ends."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.cli.answers import (
    add_show_prompt,
    answer_document,
    print_prompt,
    print_skipped,
    prompt_document,
)
from longllava_trt.cli.asking import (
    add_engine_options,
    add_media_options,
    add_sampling_options,
    add_shown_options,
    chosen_media,
    chosen_run_options,
    chosen_sampling,
)
from longllava_trt.cli.options import Subparsers, add_bundle, add_verb, chosen_images, print_json
from longllava_trt.cli.options import shown_progress as shown
from longllava_trt.core.errors import InputError, LongLLaVAError

if TYPE_CHECKING:
    from longllava_trt.runtime.model import LongLLaVA
    from longllava_trt.runtime.session import Session

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt chat bundle --images-dir holiday
  longllava-trt chat bundle --video film.mp4 --frames 300 --max-new-tokens 100
  longllava-trt chat bundle --session holiday.session
  printf 'What is this?\\n/append b.jpg\\nAnd this?\\n' | longllava-trt chat bundle --image a.jpg --json
"""
_HELP = """\
/append FILE...   show more images
/rewind N         go back to the first N images, forgetting all after them; /rewind 0 starts over
/save FOLDER      write the session to a folder; one that is there is replaced
/load FOLDER      go on with a saved session instead of this one
/info             what is in the context
/help             this
/quit             end, as the end of the input does
Anything else is a question. Quote names that hold spaces."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "chat",
        help_text="show images once and ask many questions",
        description="Show images and videos once, then answer one question a line from stdin without feeding them again. "
        "Turns are remembered, unless --forget. Lines that begin with / are commands: /append, /rewind, /save, /load, "
        "/info, /help, /quit. At a terminal, Ctrl-C ends an answer and an error is only told; elsewhere both end the "
        "chat. With --json every line of stdout is one document, the first about what was shown.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FOLDER",
        help="begin with a session that /save wrote, shown as it was saved; images are shown after it (default: an empty one)",
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help="answer every question as if it were the first (default: turns are remembered)",
    )
    add_shown_options(parser)
    add_media_options(parser)
    add_show_prompt(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show, then answer until the input ends."""
    from longllava_trt.runtime.model import LongLLaVA

    images, sampling, media = chosen_images(args), chosen_sampling(args), chosen_media(args)
    model = LongLLaVA.from_bundle(args.bundle, chosen_run_options(args))
    session = model.load_session(args.session) if args.session else model.session(media=media)
    chat = _Chat(args, model, session, sampling)
    _attempt(lambda: chat.show(images, args.video, note="ready"))
    for line in _lines():
        if not _attempt(partial(chat.take, line)):
            break
    return 0


def _attempt(action: Callable[[], bool]) -> bool:
    """Do something; at a terminal an error or Ctrl-C is only told, and the session is still whole."""
    try:
        return action()
    except (LongLLaVAError, KeyboardInterrupt) as err:
        if not sys.stdin.isatty():
            raise
        print(f"error: {err}" if str(err) else "interrupted", file=sys.stderr)
        return True


def _lines() -> Iterator[str]:
    """Yield lines that hold something, asking for them at a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as err:
            raise InputError(
                f"stdin: not valid UTF-8 ({err}); convert the questions first"
            ) from err
        if not line:
            return
        if line.strip():
            yield line.strip()


class _Chat:
    """One session at a time, and what each line does to it."""

    def __init__(
        self, args: argparse.Namespace, model: LongLLaVA, session: Session, sampling: Any
    ) -> None:
        self._args = args
        self._model = model
        self._session = session
        self._sampling = sampling
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/append": self._append,
            "/rewind": self._rewind,
            "/save": self._save,
            "/load": self._load,
            "/info": lambda _: None,
        }

    def take(self, line: str) -> bool:
        """Do what one line asks for; False ends the chat."""
        name, *words = _split(line) if line.startswith("/") else [""]
        if name == "/quit":
            return False
        if name == "/help":
            print(_HELP, file=sys.stderr)
        elif name in self._commands:
            self._commands[name](words)
            self._tell(line)
        elif name:
            raise InputError(f"chat: there is no command {name}; /help lists them")
        else:
            self._ask(line)
        return True

    def show(self, images: list[Path], videos: list[Path], *, note: str) -> bool:
        """Show images and videos, and say what is in the context then; the chat goes on."""
        if images or videos:
            with shown(self._args) as progress:
                result = self._session.ingest(images, videos=videos, progress=progress)
            if not self._args.quiet:
                print_skipped(result.skipped)
            self._tell(note, skipped=list(result.skipped), stages_s=result.timings)
        else:
            self._tell(note)
        return True

    def _ask(self, question: str) -> None:
        prompt = self._session.written_prompt(question) if self._args.show_prompt else None
        if prompt is not None and not self._args.json:
            print_prompt(prompt)
        begin = time.perf_counter()

        def stream(text: str) -> None:
            if not self._args.json:
                print(text, end="", flush=True)

        answer = self._session.ask(
            question, sampling=self._sampling, remember=not self._args.forget, on_text=stream
        )
        if self._args.json:
            total_s = time.perf_counter() - begin
            backend = self._model.runner.backend.name
            document = answer_document(answer, backend=backend, total_s=total_s)
            print_json({"question": question, **prompt_document(prompt), **document})
        else:
            print(flush=True)

    def _append(self, words: list[str]) -> None:
        if not words:
            raise InputError("chat: /append needs the names of images")
        with shown(self._args) as progress:
            result = self._session.append(words, progress=progress)
        if not self._args.quiet:
            print_skipped(result.skipped)

    def _rewind(self, words: list[str]) -> None:
        if len(words) != 1 or not words[0].isdecimal():
            raise InputError("chat: /rewind needs one number, that of the images to keep")
        with shown(self._args) as progress:
            self._session.rewind(int(words[0]), progress=progress)

    def _save(self, words: list[str]) -> None:
        self._session.save(_folder("/save", words), overwrite=True)

    def _load(self, words: list[str]) -> None:
        self._session = self._model.load_session(_folder("/load", words))

    def _tell(self, command: str, **more: Any) -> None:
        session = self._session
        if self._args.json:
            sizes = {"num_images": session.num_images, "num_positions": session.num_positions}
            print_json({"command": command, **sizes, "num_turns": len(session.turns), **more})
        elif not self._args.quiet:
            print(
                f"{session.num_images} images, {session.num_positions} positions, {len(session.turns)} turns remembered",
                file=sys.stderr,
            )


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as err:
        raise InputError(f"chat: {err}; quote names that hold spaces or quotes") from err


def _folder(command: str, words: list[str]) -> Path:
    if len(words) != 1:
        raise InputError(f"chat: {command} needs one folder")
    return Path(words[0])
