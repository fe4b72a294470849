"""Seconds and memory of what runs inside."""

from __future__ import annotations

import time

import numpy as np
import pytest

from scmmgan.model.evidence import resources
from scmmgan.model.evidence.resources import Cost


def test_what_is_held_at_most_is_counted():
    with Cost() as cost:
        held = np.ones(10_000_000)
        time.sleep(0.1)
        del held
    assert 60 < cost.memory < 200
    assert 0.1 <= cost.seconds < 60


def test_errors_pass_and_are_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resources, "_held", lambda: None)
    cost = Cost()
    with pytest.raises(ValueError, match="inside"), cost:
        raise ValueError("inside")
    assert cost.seconds > 0
    assert np.isnan(cost.memory)
