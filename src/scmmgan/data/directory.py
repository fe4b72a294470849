"""A trained model as a directory: JSON, arrays, and a card for people; nothing pickled, checked as `uns` is."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmmgan.data import record as _record
from scmmgan.data.keys import FORMAT

TREE, ARRAYS, CARD = "model.json", "arrays.npz", "README.md"
# entries of an alignment that mapping needs, and those that say what the model is
KEPT = ("format", "params", "features", "diagnosis", "model")


def write(path: str | os.PathLike[str], record: Mapping[str, Any], card: str) -> None:
    """Write the entries of a record that is whole, and the card; all files or none, in place of an earlier model.

    FileExistsError where something else is there.
    """
    folder = _folder(path).absolute()
    if folder.exists() and not _replaceable(folder):
        raise FileExistsError(f"{str(path)!r} is there and no model of scmmgan. Name another directory, or delete it.")
    arrays: dict[str, np.ndarray] = {}
    tree = {"scmmgan": int(record["format"]), "digest": {name: str(record["digest"][name]) for name in KEPT}}
    tree["record"] = {name: _plain(record[name], arrays) for name in KEPT}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        Path(new, TREE).write_text(json.dumps(tree, indent=1), encoding="utf-8")
        Path(new, CARD).write_text(card, encoding="utf-8")
        with open(new / ARRAYS, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            # a disk that is full may say so only now
            os.fsync(file.fileno())
        put_in_place(new, folder, old)


def put_in_place(new: Path, path: Path, old: Path) -> None:
    """Give what is `new` the name `path`; what had it becomes `old`, or gets it back where that fails."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record as it was written; FileNotFoundError or ValueError where it is not there, foreign, newer or damaged."""
    folder = _folder(path)
    if not folder.exists():
        raise FileNotFoundError(f"There is no directory {str(path)!r}. `scmmgan.save(mdata, ...)` writes one.")
    if not Path(folder, TREE).is_file():
        raise ValueError(
            f"{str(path)!r} is no model of scmmgan: it has no {TREE!r}. `scmmgan.save(mdata, ...)` writes one."
        )
    where = f"The model in {str(path)!r}"
    try:
        tree = json.loads(Path(folder, TREE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"{TREE!r} is no JSON ({error})") from error
    if not isinstance(tree, Mapping) or "scmmgan" not in tree:
        raise ValueError(f"{str(path)!r} is no model of scmmgan: its {TREE!r} is another program's.")
    if tree["scmmgan"] != FORMAT:
        raise ValueError(
            f"{where} was written by another version of scmmgan (format {tree['scmmgan']}; this one reads {FORMAT}). Read it "
            "with that version, or align and save again."
        )
    try:
        # opened here: numpy leaves a damaged file open
        with open(folder / ARRAYS, "rb") as file, np.load(file, allow_pickle=False) as stored:
            record = {str(name): _restored(value, stored) for name, value in tree["record"].items()}
        digests = dict(tree["digest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise _damaged(where, str(error)) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(where, f"{ARRAYS!r} cannot be read ({error})") from error
    for name in KEPT:
        if name not in record or _record.digest(record[name]) != digests.get(name):
            raise _damaged(where, f"{name!r} is not what was written")
    return record


def damaged(path: str | os.PathLike[str], reason: str) -> ValueError:
    """The one error of a directory that cannot be used."""
    return _damaged(f"The model in {str(path)!r}", reason)


def _damaged(where: str, reason: str) -> ValueError:
    return ValueError(f"{where} is damaged: save it again. Found: {reason}.")


def _folder(path: str | os.PathLike[str]) -> Path:
    """The directory; TypeError where its name is none."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(
            f"A directory is needed, got {path!r:.60}. The model of an aligned MuData: `scmmgan.get.model(mdata)`."
        )
    return Path(path)


def _replaceable(folder: Path) -> bool:
    """Whether a directory is empty, or holds a model and nothing else."""
    return folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {TREE, ARRAYS, CARD}


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON: numbers of arrays go to `arrays`, text and tables are written out."""
    if isinstance(value, pd.DataFrame):
        return {"__table__": {str(name): _plain(column.to_numpy(), arrays) for name, column in value.items()}}
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, arrays) for name, entry in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | pd.api.extensions.ExtensionArray):
        found = np.asarray(value)
        if found.dtype.kind not in "biuf":
            return {"__text__": [str(entry) for entry in found.ravel()], "shape": list(found.shape)}
        name = f"a{len(arrays)}"
        arrays[name] = found
        return {"__array__": name}
    return value


def _restored(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `_plain` made JSON of."""
    if not isinstance(value, Mapping):
        return value
    if "__array__" in value:
        return arrays[value["__array__"]]
    if "__text__" in value:
        return np.array(value["__text__"], dtype=object).reshape(value["shape"])
    if "__table__" in value:
        return pd.DataFrame({name: _restored(column, arrays) for name, column in value["__table__"].items()})
    return {name: _restored(entry, arrays) for name, entry in value.items()}
