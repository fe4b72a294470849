"""Wheel and sdist hold the package, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import scmmgan

ROOT = Path(__file__).parents[1]
NAME = f"scmmgan-{scmmgan.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def package() -> set[str]:
    """All files of the package, caches aside."""
    source = ROOT / "src"
    return {
        path.relative_to(source).as_posix()
        for path in (source / "scmmgan").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel(built: Path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        found = set(archive.namelist())
    inside = {name for name in found if name.startswith("scmmgan/")}
    assert inside == package()
    info = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert found - inside == {f"{NAME}.dist-info/{name}" for name in info}


def test_sdist(built: Path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        found = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
    inside = {name for name in found if name.startswith("src/")}
    assert inside == {f"src/{name}" for name in package()}
    assert found - inside == {
        *(".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "constraints.txt"),
        "pyproject.toml",
    }
