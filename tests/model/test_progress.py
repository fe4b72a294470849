from __future__ import annotations

import logging
import time

import pytest

from scmmgan.model import progress


def test_a_loop_shows_its_progress_and_what_is_left_where_that_is_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.0)
    items = [1, 2, 3]
    # without a bar there is nothing between the loop and its items
    assert progress.tracked(items, "pools") is items
    with progress.shown(False):
        assert progress.tracked(items, "pools") is items
    assert capfd.readouterr() == ("", "")
    with progress.shown(True):
        assert list(progress.tracked(items, "pools")) == items
    out, err = capfd.readouterr()
    assert out == ""
    assert "scmmgan pools" in err
    # 0 of 3 items, and how long the rest takes
    assert "0/3 [00:00<" in err
    # what comes after is not shown any more
    assert progress.tracked(items, "pools") is items


def test_a_quick_loop_shows_nothing(capfd: pytest.CaptureFixture[str]):
    with progress.shown(True):
        assert list(progress.tracked(range(3), "pools")) == [0, 1, 2]
    assert "pools" not in capfd.readouterr().err


def test_after_an_error_nothing_is_shown():
    with pytest.raises(KeyboardInterrupt), progress.shown(True):
        raise KeyboardInterrupt
    items = [1]
    assert progress.tracked(items, "pools") is items


def test_seconds_of_stages(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="scmmgan")
    stages = progress.Stages()
    with stages("reading"):
        time.sleep(0.02)
        assert 0.02 <= stages.so_far()["reading"] < 2
    done = stages.so_far()["reading"]
    with pytest.raises(ValueError), stages("graph"):
        raise ValueError
    # what is over stands still
    assert stages.so_far()["reading"] == done
    assert list(stages.so_far()) == ["reading", "graph"]
    stages.log("Aligned")
    assert caplog.messages == ["Aligned in 0.0 s: reading 0.0, graph 0.0."]
