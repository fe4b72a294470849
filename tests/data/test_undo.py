# ruff: noqa: PT012, PT019
"""Ctrl-C while results are written: the object is as before, or complete."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pytest

import scmmgan as smm
from scmmgan.data import undo as _undo

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

PACKAGE = str(Path(smm.__file__).parent)
CHANGES = ("__setitem__", "__delitem__", "drop", "obs", "var")


def interrupted(write: Callable[[], Any], number: int, event: str) -> bool:
    """Run, and press Ctrl-C at the n-th change of a container made from `scmmgan.data`; whether there was one."""
    count = 0

    def watch(frame: Any, what: str, arg: Any) -> None:
        nonlocal count
        if what != event or frame.f_code.co_name not in CHANGES or frame.f_back is None:
            return
        caller, own = frame.f_back.f_code.co_filename, frame.f_code.co_filename
        if caller.startswith(f"{PACKAGE}/data") and not own.startswith(PACKAGE):
            count += 1
            if count == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        write()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.fixture(scope="module")
def _aligned() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=50, n_features=[20, 15], spatial=True)
    smm.tl.align(mdata, links="gene", method="coupling", progress_bar=False)
    smm.tl.match(mdata, "rna", "protein")
    return mdata


WRITES: dict[str, Callable[[md.MuData], Any]] = {
    "first align": lambda m: smm.tl.align(m, links="gene", method="coupling", key_added="new", progress_bar=False),
    "align again": lambda m: smm.tl.align(m, links="gene", method="coupling", features=[], progress_bar=False),
    "match": lambda m: smm.tl.match(m, "protein", "rna"),
    "transfer": lambda m: smm.tl.transfer(m, "rna", "protein", obs="cell_type"),
    "place": lambda m: smm.tl.place(m, "protein", "rna"),
    "uncertainty": lambda m: smm.tl.uncertainty(m, "rna", "protein"),
}


# the most changes, before each of them; after each of them is slow, and so quicker of a first alignment
SLOW = ("return", "align again")


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        pytest.param(event, kind, marks=[pytest.mark.slow] * ((event, kind) == SLOW))
        for event in ("call", "return")
        for kind in WRITES
    ],
)
def test_ctrl_c_at_every_change(_aligned: md.MuData, kind: str, event: str, fingerprint: Callable):
    from scmmgan.data import derived, slots

    # what is written is computed once, and written again and again
    mdata, recorded = _aligned.copy(), {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (slots, derived):
            write = module.write
            patch.setattr(module, "write", lambda m, *a, _w=write, **k: recorded.update(write=_w, a=a, k=k))
        WRITES[kind](mdata)
    before, number = fingerprint(mdata), 1

    def again() -> None:
        recorded["write"](mdata, *recorded["a"], **recorded["k"])

    while interrupted(again, number, event):
        assert fingerprint(mdata) == before, f"change {number}"
        number += 1
    assert number > 2
    assert fingerprint(mdata) != before
    again()


def test_ctrl_c_at_every_change_of_a_diagnosis(_aligned: md.MuData, fingerprint: Callable):
    from scmmgan.data import slots
    from scmmgan.data.keys import Keys

    mdata, keys = _aligned.copy(), Keys()
    record = dict(slots.diagnosis(mdata, "rna", "protein", keys)) | {"statement": "another"}
    flags = {pair: np.ones(50, dtype=bool) for pair in (("rna", "protein"), ("protein", "rna"))}
    before, number = fingerprint(mdata), 1

    def write() -> None:
        slots.write_diagnosis(mdata, {("rna", "protein"): record}, flags, keys)

    while interrupted(write, number, "call"):
        assert fingerprint(mdata) == before
        number += 1
    assert number > 2
    assert smm.get.diagnosis(mdata, "rna", "protein")["statement"] == "another"


def test_any_error_is_undone(_aligned: md.MuData, fingerprint: Callable):
    mdata = _aligned.copy()
    before = fingerprint(mdata)
    with pytest.raises(MemoryError), _undo.all_or_nothing(mdata, ["rna"]):
        mdata["rna"].obs["x"] = 1
        del mdata["rna"].obs["cell_type"]
        mdata["rna"].obsm["y"] = np.zeros((50, 2))
        del mdata["rna"].obsm["X_scmmgan"]
        mdata["rna"].layers["z"] = np.zeros((50, 20))
        mdata["rna"].var["v"] = 1
        mdata.obs["o"] = 1
        mdata.uns.clear()
        raise MemoryError
    assert fingerprint(mdata) == before
    with _undo.all_or_nothing(mdata, ["rna", "gone"]):
        mdata["rna"].obs["x"] = 1
    assert "x" in mdata["rna"].obs


def test_ctrl_c_pressed_twice(_aligned: md.MuData, fingerprint: Callable, monkeypatch: pytest.MonkeyPatch):
    mdata, real = _aligned.copy(), _undo._put_entries
    before, calls = fingerprint(mdata), []

    def put(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(_undo, "_put_entries", put)
    with pytest.raises(KeyboardInterrupt), _undo.all_or_nothing(mdata, ["rna"]):
        mdata["rna"].obsm.clear()
        raise KeyboardInterrupt
    assert fingerprint(mdata) == before
