"""Parts of a large piece of work, one after another, or by the workers of a dask cluster of which the program has a client."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from scmmgan.model.space.linear import one_thread


def each(function: Callable[..., Any], parts: Iterable[Sequence[Any]], *shared: Any, spread: bool) -> Iterator[Any]:
    """`function(*part, *shared)` of every part, in their order; what is shared goes to every worker once.

    `spread`: workers may do it. They need this package, so that they get no data but such as are read in parts anyway.
    """
    client = _client() if spread else None
    if client is None:
        yield from (function(*part, *shared) for part in parts)
        return
    common = [client.scatter(of, broadcast=True, hash=False) for of in shared]
    waiting: deque[Any] = deque()
    for part in parts:
        sent = [client.scatter(of, hash=False) for of in part]
        waiting.append(client.submit(_alone, function, *sent, *common, pure=False))
        # two for each thread: one that is worked on, one that is there
        if len(waiting) >= 2 * sum(client.nthreads().values()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _client() -> Any:
    """The client of a cluster that the program has opened, or None."""
    if "distributed" not in sys.modules:
        return None
    from dask import distributed

    try:
        found = distributed.default_client()
    except ValueError:
        return None
    # results of the others can only be awaited
    return None if found.asynchronous else found


def _alone(function: Callable[..., Any], *of: Any) -> Any:
    with one_thread():
        return function(*of)
