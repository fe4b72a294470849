"""What tools write beside an alignment that is there: recorded, so that the next one of that name removes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan.data.keys import Keys
from scmmgan.data.record import sealed
from scmmgan.data.undo import all_or_nothing

if TYPE_CHECKING:
    from mudata import MuData

Slot = tuple[str, str, str]  # modality; obs, var, obsm or layers; name


def check_free(mdata: MuData, slots: Iterable[Slot], keys: Keys) -> None:
    """ValueError where a slot holds something that no tool wrote for this alignment: to be called before computing."""
    ours, slots = set(recorded(mdata.uns[keys.uns])), list(slots)
    for name in dict.fromkeys(name for name, _, _ in slots):
        if mdata.is_view or mdata[name].is_view:
            raise ValueError("`mdata` is a view and cannot be written to. Use `mdata = mdata.copy()`.")
    for slot in slots:
        name, container, key = slot
        if key in getattr(mdata[name], container) and slot not in ours:
            raise ValueError(
                f"`mdata[{name!r}].{container}` has {key!r} already, which is no result for the alignment {keys.key!r}. "
                "Name another key, or delete it."
            )


def write(
    mdata: MuData,
    slots: Mapping[Slot, Any],
    keys: Keys,
    *,
    uns: Mapping[str, Any] | None = None,
    instead_of: Iterable[Slot] = (),
) -> None:
    """Write all slots and the entries of `uns[key]`, and record them; earlier results of the same name are replaced.

    Those of `instead_of` that an earlier call wrote, and this one does not, are removed.
    """
    check_free(mdata, slots, keys)
    record = dict(mdata.uns[keys.uns])
    ours = recorded(record)
    stale = [slot for slot in instead_of if slot in ours and slot not in slots]
    kept = [slot for slot in ours if slot not in stale]
    record = sealed({**(uns or {}), "derived": _stored([*kept, *slots])}, record)
    with all_or_nothing(mdata, [name for name, _, _ in (*stale, *slots)]):
        _delete(mdata, stale)
        for (name, container, key), value in slots.items():
            getattr(mdata[name], container)[key] = value
        mdata.uns[keys.uns] = record


def recorded(record: Mapping[str, Any]) -> list[Slot]:
    """Slots that were written for an alignment; what a damaged record says otherwise is passed over."""
    found, derived = [], record.get("derived")
    for name, entries in derived.items() if isinstance(derived, Mapping) else ():
        for entry in entries if isinstance(entries, np.ndarray | list) and np.ndim(entries) == 1 else ():
            container, _, key = str(entry).partition(":")
            if key and container in ("obs", "var", "obsm", "varm", "layers"):
                found.append((str(name), container, key))
    return found


def _stored(slots: Sequence[Slot]) -> dict[str, np.ndarray]:
    """Slots as arrays of text by modality."""
    return {
        name: np.array(sorted({f"{c}:{k}" for m, c, k in slots if m == name}), dtype=object)
        for name in dict.fromkeys(m for m, _, _ in slots)
    }


def clear(mdata: MuData, keys: Keys) -> None:
    """Delete what tools wrote for an alignment, and the copies of it that MuData keeps."""
    _delete(mdata, recorded(mdata.uns[keys.uns]))


def _delete(mdata: MuData, slots: Iterable[Slot]) -> None:
    for name, container, key in slots:
        if name in mdata.mod and key in getattr(mdata[name], container):
            del getattr(mdata[name], container)[key]
        if container in ("obs", "var"):
            frame = getattr(mdata, container)
            for copied in frame.columns.intersection([key, f"{name}:{key}"]):
                del frame[copied]
