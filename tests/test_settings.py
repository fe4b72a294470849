"""What is said: on stderr without any set-up, once, and never through the root logger."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

import scmmgan as smm

LOGGER = logging.getLogger("scmmgan")


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    level = LOGGER.level
    yield
    LOGGER.setLevel(level)


def said(code: str) -> str:
    """What a plain script writes to stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


SAY = "log = logging.getLogger('scmmgan'); log.info('an info'); log.warning('a warning')\n"


def test_infos_are_seen_without_setting_up_logging():
    assert said(f"import logging, scmmgan\n{SAY}") == "an info\na warning\n"


def test_import_stays_cheap_and_leaves_the_root_logger_alone():
    code = (
        "import logging, sys, scmmgan\n"
        "assert not {'numpy', 'torch', 'mudata'} & set(sys.modules), 'heavy'\n"
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING\n"
    )
    assert said(code) == ""


@pytest.mark.parametrize("when", ["before", "after"])
def test_messages_appear_once_where_the_user_has_set_up_logging(when: str):
    lines = ["import logging", "logging.basicConfig(level=logging.WARNING)", "import scmmgan"]
    lines = lines if when == "before" else [lines[0], lines[2], lines[1]]
    found = said("\n".join([*lines, SAY]))
    assert found.count("an info") == found.count("a warning") == 1


def test_a_file_of_the_user_takes_nothing_away(tmp_path):
    found = said(f"import logging\nlogging.basicConfig(filename={str(tmp_path / 'log')!r})\nimport scmmgan\n{SAY}")
    assert found == "an info\na warning\n"
    assert "a warning" in (tmp_path / "log").read_text()


def test_a_level_that_the_user_has_set_stays():
    assert said(f"import logging\nlogging.getLogger('scmmgan').setLevel('ERROR')\nimport scmmgan\n{SAY}") == ""


@pytest.mark.parametrize(
    ("value", "number", "level"),
    [
        (0, 0, 40), ("error", 0, 40), (1, 1, 30), ("Warning", 1, 30), (2, 2, 20), ("info", 2, 20), (3, 3, 15),
        ("hint", 3, 15), (4, 4, 10), ("debug", 4, 10),
    ],
)  # fmt: skip
def test_verbosity(value: int | str, number: int, level: int):
    smm.settings.verbosity = value
    assert smm.settings.verbosity == number
    assert LOGGER.level == level


@pytest.mark.parametrize("value", ["loud", 5, -1, True, None, 1.5])
def test_unknown_verbosity(value: object):
    before = LOGGER.level
    with pytest.raises(ValueError, match=r"`verbosity` must be one of \['error', .*from 0 to 4; got"):
        smm.settings.verbosity = value
    assert LOGGER.level == before


def test_quietly(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        with pytest.raises(KeyError), smm.settings.quietly():  # noqa: PT012
            LOGGER.warning("again")
            LOGGER.error("an error")
            raise KeyError
        LOGGER.info("later")
    assert caplog.messages == ["an error", "later"]


@pytest.mark.slow
def test_the_verdict_is_one_line_in_a_plain_script():
    code = (
        "import scmmgan as smm\nm = smm.datasets.toy(n_cells=100)\n"
        "for links in ('gene', None):\n"
        "    smm.tl.align(m, links=links, method='coupling', progress_bar=False)\n"
    )
    lines = said(code).splitlines()
    for expected in ("supported by links", "nothing shows that cells were mapped"):
        (line,) = [line for line in lines if expected in line]
        assert line.count(expected) == 1
        assert "rna and protein: " in line
        assert "scmmgan.get.diagnosis" in line
        assert len(line) < 300


def test_unpulled_with_and_without_an_option(monkeypatch: pytest.MonkeyPatch):
    """mudata 0.3 has the option, and gets its own value back; 0.4 has none."""
    import mudata as md

    if hasattr(md, "set_options"):
        options = md.set_options().__enter__()
        before = dict(options)
        with smm.settings.unpulled():
            assert options["pull_on_update"] is False
        assert options == before
        monkeypatch.delattr(md, "set_options")
    with smm.settings.unpulled():
        pass
