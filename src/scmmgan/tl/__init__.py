"""Tools: alignment of modalities, its diagnosis, and what follows from it."""

from __future__ import annotations

from ._align import align
from ._cluster import cluster
from ._compare import compare
from ._correlations import correlations
from ._diagnose import diagnose
from ._evaluate import evaluate
from ._importance import importance
from ._match import match
from ._place import place
from ._transfer import transfer
from ._translate import translate
from ._uncertainty import uncertainty

__all__ = [
    "align",
    "cluster",
    "compare",
    "correlations",
    "diagnose",
    "evaluate",
    "importance",
    "match",
    "place",
    "transfer",
    "translate",
    "uncertainty",
]
