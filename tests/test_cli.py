"""The command `scmmgan`: exit status, what it prints, what it writes."""

from __future__ import annotations

import errno
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import scmmgan as smm
from scmmgan._demo import score_table
from scmmgan.cli import main

FILES = ["aligned.h5mu", "alignment_cell_type.png", "alignment_modality.png", "history.png"]


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"scmmgan {smm.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["demo", "--no-such-option"]])
def test_wrong_use(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: scmmgan" in capsys.readouterr().err


def test_unwritable_folder_is_said_before_any_work(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("scmmgan.cli.run_demo", lambda folder: pytest.fail("work was done"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        assert main(["demo", "-o", str(folder)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "cannot write to" in said.err
        assert str(folder) in said.err
        assert "name another with -o" in said.err


def check_demo(folder: Path, said: str) -> dict[str, list[float]]:
    """What the demo wrote and said; scores of the printed table, which the written file repeats and goes on working."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name in FILES:
        assert f"{folder.name}/{name}" in said
        if name.endswith(".png"):
            picture = imread(folder / name)
            assert min(picture.shape[:2]) > 300
            assert picture[..., :3].std() > 0.02
    table = re.findall(r"^(perfect map|scmmgan|random map) +([\d.]+) +([\d.]+) +([\d.]+)$", said, re.MULTILINE)
    scores = {name: [float(value) for value in values] for name, *values in table}
    assert scores["perfect map"] == [0, 1, 1]
    assert 0.4 < scores["random map"][0] < 0.6
    assert scores["scmmgan"][0] < scores["random map"][0]
    mdata = md.read(folder / "aligned.h5mu")
    assert score_table(mdata) in said
    assert np.isfinite(smm.get.mapped(mdata, "panel_a", "panel_b").X).all()
    return scores


@pytest.fixture(scope="module")
def _toy() -> md.MuData:
    toy = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    mdata = md.MuData(dict(zip(("panel_a", "panel_b"), toy.mod.values())))
    mdata.uns["truth"] = dict(zip(mdata.mod, toy.uns["truth"].values()))
    smm.tl.align(mdata, links="gene", max_steps=20, progress_bar=False)
    return mdata


@pytest.fixture
def quick(_toy: md.MuData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on a toy that is aligned already."""
    monkeypatch.setattr("scmmgan.datasets.pbmc68k_panels", lambda: _toy)
    monkeypatch.setattr("scmmgan.tl.align", lambda mdata: None)


@pytest.mark.usefixtures("quick")
def test_demo_on_a_toy(tmp_path: Path, capsys):
    assert main(["demo", "-o", str(tmp_path / "there" / "demo")]) == 0
    said = capsys.readouterr().out
    assert "panel_a (60 cells × 30 genes), panel_b (60 cells × 20 genes)" in said
    check_demo(tmp_path / "there" / "demo", said)


@pytest.fixture
def empty_pictures(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with pictures that cost nothing."""
    for name in ("history", "alignment"):
        monkeypatch.setattr(f"scmmgan.pl.{name}", lambda *_, **__: Figure(figsize=(1, 1)))


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_any_encoding_of_the_terminal(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert "FOSCTTM" in out.buffer.getvalue().decode(encoding)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    ("where", "error", "status", "says"),
    [
        ("mudata.MuData.write", FULL, 2, "cannot write to .*No space left on device.*-o"),
        ("os.fsync", FULL, 2, "cannot write to .*No space left on device.*-o"),
        ("matplotlib.figure.Figure.savefig", KeyboardInterrupt(), 130, "interrupted: files of an earlier run are as"),
        ("matplotlib.figure.Figure.savefig", ValueError("a\nb"), 1, "ValueError: a b"),
    ],
)
def test_files_of_an_earlier_run_stay(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException, status: int, says: str
):
    for name in FILES:
        (tmp_path / name).write_text("earlier")

    def fail(first: Any, *_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    assert main(["demo", "-o", str(tmp_path)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(f"scmmgan demo: {says}.*\n", said.err)
    # nothing half written is left beside them
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, "earlier")


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_a_report_that_nobody_takes(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, number: int, status: int):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, "gone")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["demo", "-o", str(tmp_path)]) == status
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    said = capsys.readouterr().err
    assert said == "" if status == 0 else "all files are in" in said
    sys.stdout.close()


@pytest.mark.slow
def test_demo(tmp_path: Path):
    """The whole demo as a user runs it, with the default folder."""
    command = [str(Path(sys.executable).parent / "scmmgan"), "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scmmgan_demo"]
    scores = check_demo(tmp_path / "scmmgan_demo", done.stdout)
    # the prototype: .065 and .78
    assert scores["scmmgan"][0] < 0.10
    assert min(scores["scmmgan"][1:]) > 0.65
    assert 0.45 < scores["random map"][0] < 0.55
    assert max(scores["random map"][1:]) < 0.45
