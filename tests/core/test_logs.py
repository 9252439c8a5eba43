"""Logs and progress: what reaches stderr, and how much of it."""

import logging

import pytest

from longllava_trt.core.logs import ProgressEvent, configure, terminal_progress


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (-1, ["error"]),
        (0, ["warning", "error"]),
        (1, ["info", "warning", "error"]),
        (2, ["debug", "info", "warning", "error"]),
        (9, ["debug", "info", "warning", "error"]),
    ],
)
def test_verbosity_decides_what_our_loggers_say(
    verbosity: int, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(verbosity)
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("longllava_trt.export.somewhere"), level)("this is %s", level)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "".join(
        f"{s.upper()} longllava_trt.export.somewhere: this is {s}\n" for s in shown
    )


def test_other_packages_stay_at_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    configure(2)
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("somebody.else").warning("trouble")
    assert capsys.readouterr().err == "WARNING somebody.else: trouble\n"


def test_without_a_terminal_each_finished_task_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with terminal_progress() as progress:
        for done in range(4):
            progress(ProgressEvent("export [decoder]", done, 3, "layers", f"layer {done}"))
        progress(ProgressEvent("never finished", 1, None, "tokens"))
        progress(ProgressEvent("export [decoder]", 0, 0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "export [decoder]: 3 layers, layer 3, 0.0 s",
        "export [decoder]: 0 steps, 0.0 s",
    ]
