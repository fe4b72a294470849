"""`mdata.uns[key]` as it was written: complete, and the same to the last bit; otherwise one error says that it is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from scmmgan.data.keys import FORMAT, Keys

# entries that every alignment has
CORE = ("format", "params", "features", "landmarks", "history", "diagnosis", "model", "fingerprint")


def is_alignment(found: object) -> bool:
    """Whether an entry of `uns` is an alignment of ours, whole or not."""
    return isinstance(found, Mapping) and not {"format", "model", "fingerprint", "digest"}.isdisjoint(found)


def sealed(entries: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Entries, added to those of `before`, with a digest of each."""
    digests = {**_mapping((before or {}).get("digest")), **{name: digest(value) for name, value in entries.items()}}
    return {**(before or {}), **entries, "digest": digests}


def whole(found: Mapping[str, Any], keys: Keys, *also: str) -> dict[str, Any]:
    """The record, or a ValueError unless all core entries, and those of `also` that are there, are what was written."""
    number = found.get("format")
    # records of the first versions have neither a whole number nor digests
    unknown = "digest" not in found and (number is None or isinstance(number, str))
    if unknown or (isinstance(number, int | np.integer) and number != FORMAT):
        raise ValueError(
            f"The alignment {keys.key!r} was written by another version of scmmgan (format {number}; this one reads "
            f"{FORMAT}). Align again."
        )
    digests = _mapping(found.get("digest"))
    if missing := [name for name in CORE if name not in found or name not in digests]:
        raise damaged(keys, f"it lacks {missing}, as where `mudata.concat(uns_merge=...)` keeps a part of it")
    for name in (*CORE, *(name for name in also if name in found)):
        if digest(found[name]) != digests.get(name):
            raise damaged(keys, f"{name!r} is not what was written")
    return dict(found)


def damaged(keys: Keys, reason: str) -> ValueError:
    """The one error of a record that cannot be used."""
    return ValueError(f"The alignment {keys.key!r} in `mdata.uns` is damaged: align again. Found: {reason}.")


def digest(value: object) -> str:
    """Of all bits: the same before and after a file, in any order of keys."""
    found = hashlib.blake2b(digest_size=8)
    for part in _parts(value):
        found.update(part if isinstance(part, bytes) else part.data)
    return found.hexdigest()


def _parts(value: object) -> Iterator[bytes | np.ndarray]:
    """What a value consists of; nothing of it is called."""
    if isinstance(value, pd.DataFrame):
        # files write another index than they got
        value = {str(name): column.to_numpy() for name, column in value.items()}
    if isinstance(value, Mapping):
        yield f"{{{len(value)}".encode()
        for name in sorted(value, key=str):
            yield _text(str(name))
            yield from _parts(value[name])
    elif isinstance(value, str):
        yield _text(value)
    elif isinstance(value, bool | int | float | np.ndarray | np.generic | pd.api.extensions.ExtensionArray):
        yield from _array_parts(np.asarray(value))
    else:
        yield type(value).__name__.encode()


def _array_parts(values: np.ndarray) -> Iterator[bytes | np.ndarray]:
    number = values.dtype.kind in "biuf"
    if values.ndim == 0:
        yield repr(float(values)).encode() if number else _text(str(values[()]))
        return
    # arrays without an entry lose their type in files
    yield f"[{values.shape}{values.dtype.str if number and values.size else ''}".encode()
    if number:
        yield np.ascontiguousarray(values).view(np.uint8) if values.size else b""
    else:
        yield from (_text(str(entry)) for entry in values.ravel())


def _text(text: str) -> bytes:
    return f"{len(text)}:{text}".encode("utf-8", "surrogatepass")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
