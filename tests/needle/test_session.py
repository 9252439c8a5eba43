"""A kept context answers what it holds at the time: the mark while it is there, nothing before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.needle.pictures import Mark, draw_marked
from examples.needle.task import NOTHING, QUESTIONS, draw_hay_pictures
from longllava_trt.runtime.model import LongLLaVA
from longllava_trt.runtime.session import Session

pytestmark = pytest.mark.slow

SEED = 11
QUESTION = QUESTIONS["mark"]
MARK = Mark("green", "cross")


def ask(session: Session) -> str:
    return session.ask(QUESTION, max_new_tokens=24).text


def test_the_answer_follows_what_is_in_the_context(needle_bundle: Path, tmp_path: Path) -> None:
    model = LongLLaVA.from_bundle(needle_bundle)
    hay = draw_hay_pictures(SEED, 40)
    session = model.session()
    session.ingest(hay[:20])
    assert ask(session) == NOTHING

    session.append([draw_marked(np.random.default_rng(SEED), MARK), *hay[20:]])
    assert ask(session) == MARK.text
    assert ask(session) == MARK.text

    before = session.fork()
    before.rewind(20)
    assert ask(before) == NOTHING
    assert ask(session) == MARK.text

    session.save(tmp_path / "session")
    assert ask(model.load_session(tmp_path / "session")) == MARK.text
