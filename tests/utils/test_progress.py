"""Progress of loops: what stderr shows in a terminal, and the log lines elsewhere."""

import re
import sys
import time

import pytest

from captioning.utils import progress as module
from captioning.utils.progress import duration, print_line, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    seconds = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return seconds


def test_a_line_every_20_seconds_and_after_five_minutes_one_a_minute(clock):
    lines = []
    for _ in progress(range(1680), desc="encoding", unit="image", log=lines.append):
        clock[0] += 0.25  # 420 seconds in all
    assert lines[0] == "encoding: image 0/1,680"
    assert [int(re.sub(r"\D", "", line.split("/")[0])) for line in lines[1:]] == [
        *range(80, 1121, 80), 1360, 1600,
    ]  # fmt: skip
    assert lines[3] == "encoding: image 240/1,680, 4 images/s, 6 min left"
    assert lines[-1] == "encoding: image 1,600/1,680, 4 images/s, 20 s left"


def test_a_short_loop_with_a_delay_logs_nothing(clock):
    lines = []
    items = list(progress(iter("abc"), desc="reading", unit="line", log=lines.append, delay=2))
    assert items == ["a", "b", "c"] and lines == []


def test_updates_in_a_block_with_a_postfix_and_steps_done_before(clock):
    lines = []
    with progress(total=40, initial=10, desc="epoch 1/3", unit="update", log=lines.append) as bar:
        bar.set_postfix_str("loss 2.500")
        clock[0] += 61
        bar.update(15)
        bar.update()
        bar.write("skipped one")
    assert lines == [
        "epoch 1/3: update 10/40",
        "epoch 1/3: update 25/40, loss 2.500, 0.25 updates/s, 61 s left",
        "skipped one",
    ]


def test_lines_go_to_stderr_with_a_timestamp(clock, capsys):
    list(progress([1], desc="loading", unit="file"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  loading: file 0/1\n", captured.err)


def test_a_terminal_shows_a_bar_and_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    lines = []
    assert list(progress(range(3), desc="encoding", log=lines.append)) == [0, 1, 2]
    assert lines == [] and "encoding" in capsys.readouterr().err


def test_a_disabled_bar_is_silent(clock, capsys):
    lines = []
    assert list(progress(range(3), desc="encoding", log=lines.append, disable=True)) == [0, 1, 2]
    assert lines == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_printed_lines_have_a_timestamp_outside_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "2026-01-02 03:04:05")
    print_line("epoch 1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_line("epoch 1")
    assert capsys.readouterr().out == "2026-01-02 03:04:05  epoch 1\nepoch 1\n"
