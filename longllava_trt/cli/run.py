"""`longllava-trt run`: one question, one streamed answer."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

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
from longllava_trt.core.errors import InputError

if TYPE_CHECKING:
    from longllava_trt.runtime.text.detokenizer import GenerationOutput

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  longllava-trt run bundle --image cat.jpg -p "What is this?"
  longllava-trt run bundle --image a.jpg --image b.jpg -p "<image> was before, <image> after. What changed?"
  longllava-trt run bundle --images-dir frames -p "What happens here?" --max-new-tokens 200
  longllava-trt run bundle --video film.mp4 --frames 300 -p "What happens?"
  longllava-trt run bundle --image plan.png --hires -p "What is written at the top left?"
  longllava-trt run bundle -p "Tell me a story." --temperature 0.8 --top-p 0.9 --seed 7
  cat question.txt | longllava-trt run bundle -p -
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "run",
        help_text="ask a bundle about images and videos",
        description="Answer one question about any number of images and videos, on this machine. The answer streams to "
        "stdout, progress and timings go to stderr; with --json nothing is streamed, the document holds the text.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        "-p",
        "--prompt",
        required=True,
        metavar="TEXT",
        help="the question; '-' reads it from stdin. <image> marks where each image goes; without any, the images "
        "come first",
    )
    add_shown_options(parser)
    add_media_options(parser)
    add_show_prompt(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer, streaming."""
    from longllava_trt.runtime.model import LongLLaVA

    images = chosen_images(args)
    sampling, media = chosen_sampling(args), chosen_media(args)
    begin = time.perf_counter()
    model = LongLLaVA.from_bundle(args.bundle, chosen_run_options(args))
    question, prompt = _prompt(args.prompt), None
    if args.show_prompt:
        prompt = model.session(media=media).written_prompt(question, images, videos=args.video)
        if not args.json:
            print_prompt(prompt)
    with ExitStack() as bars:
        progress = bars.enter_context(shown(args))

        def stream(text: str) -> None:
            # a bar that is still drawn would be torn by the answer
            bars.close()
            if not args.json:
                print(text, end="", flush=True)

        answer = model.generate(
            question,
            images,
            videos=args.video,
            media=media,
            sampling=sampling,
            on_text=stream,
            progress=progress,
        )
    total_s = time.perf_counter() - begin
    if args.json:
        document = answer_document(answer, backend=model.runner.backend.name, total_s=total_s)
        print_json({**prompt_document(prompt), **document})
    else:
        print(flush=True)
    if not args.quiet:
        _print_cost(answer)
    return 0


def _prompt(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as err:
        raise InputError(f"stdin: not valid UTF-8 ({err}); convert the question first") from err


def _print_cost(answer: GenerationOutput) -> None:
    """Say on stderr what an answer cost."""
    print_skipped(answer.skipped)
    rate = answer.decode_tokens_per_s
    shown = "1 image" if answer.num_images == 1 else f"{answer.num_images} images"
    speed = f", {rate:.1f} tokens/s after it" if rate is not None else ""
    print(
        f"{answer.prompt_tokens} prompt tokens ({shown}), first token after "
        f"{answer.prefill_s:.2f} s, {len(answer.token_ids)} tokens{speed}",
        file=sys.stderr,
    )
