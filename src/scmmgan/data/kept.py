"""What an alignment read and coupled, kept while its MuData lives in the process: tools start at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse as sp

from scmmgan.data.keys import Keys
from scmmgan.model.problem import Pair, Problem
from scmmgan.model.space.domain import Domain

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.coupling.couple import Loadings
    from scmmgan.model.coupling.coupling import Coupling

# fields of a modality that its model space does not depend on; of the steps it is those that were chosen in the end
NOT_IN_THE_SPACE = ("counts", "coordinates", "sections", "steps")


@dataclass(frozen=True)
class Kept:
    """Model spaces and couplings of one alignment, and a digest of what they were made of."""

    digest: bytes
    domains: Mapping[str, Domain]
    coupled: tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]]


_KEPT: WeakKeyDictionary[MuData, dict[str, Kept]] = WeakKeyDictionary()


def keep(mdata: MuData, problem: Problem, domains: Mapping[str, Domain], coupled: Any, keys: Keys) -> None:
    """Keep what was made of the problem, for as long as `mdata` lives."""
    _KEPT.setdefault(mdata, {})[keys.key] = Kept(digest(problem, _arguments(mdata, keys)), domains, coupled)


def find(mdata: MuData, problem: Problem, keys: Keys) -> Kept | None:
    """What was made of the same problem, to the last value; None where there is nothing, or anything has changed."""
    kept = _KEPT.get(mdata, {}).get(keys.key)
    if kept is None or kept.digest != digest(problem, _arguments(mdata, keys)):
        return None
    domains = {m: replace(domain, modality=problem.modalities[m]) for m, domain in kept.domains.items()}
    return replace(kept, domains=domains)


def couplings(
    mdata: MuData, problem: Problem, keys: Keys
) -> tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]] | None:
    """Couplings and loadings that are kept of the same problem; None where there are none."""
    kept = find(mdata, problem, keys)
    return None if kept is None else kept.coupled


def _arguments(mdata: MuData, keys: Keys) -> str:
    """The record's digest of its arguments, the seed among them, and of the seconds that they took."""
    return str(mdata.uns.get(keys.uns, {}).get("digest", {}).get("params"))


def digest(problem: Problem, arguments: str) -> bytes:
    """Of everything that model spaces and couplings are made of."""
    made_of = f"{problem.fingerprint}{dict(problem.steps)}{problem.centre}{arguments}"
    found = hashlib.blake2b(made_of.encode(), digest_size=16)
    for m in problem.modalities.values():
        for field in fields(m):
            if field.name not in NOT_IN_THE_SPACE:
                _feed(found, getattr(m, field.name))
    return found.digest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, sp.csr_matrix | sp.csc_matrix | sp.csr_array | sp.csc_array):
        _feed(found, [value.shape, value.data, value.indices, value.indptr])
    elif isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).view(np.uint8).data)
    elif isinstance(value, np.ndarray | list | tuple):
        found.update(f"{len(value)}".encode())
        for entry in value:
            _feed(found, entry)
    else:
        found.update(f"{value!r};".encode())
