"""Parts of a large piece of work, one after another, or by the workers of a dask cluster of which the program has a client."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from importlib import import_module
from itertools import islice
from typing import Any

from scmmgan.model.defaults import WORKERS_WITHIN
from scmmgan.model.space.linear import one_thread

logger = logging.getLogger("scmmgan")


def each(
    function: Callable[..., Any], parts: Iterable[Sequence[Any]], *shared: Any, spread: bool, together: int = 1
) -> Iterator[Any]:
    """`function(*part, *shared)` of every part, in their order; what is shared goes to every worker once.

    `spread`: workers may do it. They need this package, so that they get no data but such as are read in parts anyway.
    `together`: parts that a worker gets at one time. A message costs as much as work on a few megabytes.
    """
    client = _client() if spread else None
    if client is None:
        for part in parts:
            yield function(*part, *shared)
            del part  # not held while the next one is made
        return
    waiting: deque[Any] = deque()
    common: list[Any] = []
    try:
        common += _to_workers(client.scatter, [shared], broadcast=True, hash=False)
        rest = iter(parts)
        while some := list(islice(rest, together)):
            # as one piece, or they would go to different workers
            sent = _to_workers(client.scatter, [some], hash=False)
            waiting.append(_to_workers(client.submit, _alone, function, *sent, *common, pure=False))
            sent.clear()
            # two for each thread: one that is worked on, one that is there
            if len(waiting) >= 2 * sum(_to_workers(client.nthreads).values()):
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())
    finally:
        # the client keeps an error of a worker, and with it this frame and what workers hold for it
        waiting.clear()
        common.clear()


def _to_workers(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise _gone(error) from error


def _result(future: Any) -> Any:
    from dask import distributed

    try:
        return future.result()
    except (CancelledError, distributed.comm.CommClosedError) as error:
        raise _gone(error) from error


def _gone(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"A worker of the dask cluster has ended, or the cluster ({type(error).__name__}: {error}). Call once more; a worker that ends "
        "again may need more memory. Without a client (`client.close()`) this process does the work."
    )


def _client() -> Any:
    """The client of a cluster that the program has opened and whose workers can help, or None."""
    if "distributed" not in sys.modules:
        return None
    from dask import distributed

    try:
        found = distributed.default_client()
    except ValueError:
        return None
    # results of the others can only be awaited
    if found.asynchronous or found.status != "running" or _is_worker():
        return None
    if not found.nthreads():
        # a cluster that grows with its work starts workers for a task, not for data
        started = found.submit(int, pure=False)
        try:
            started.result(WORKERS_WITHIN)
        except TimeoutError:
            started.cancel()
            logger.warning(
                "The dask cluster has no workers, and none came within %g seconds: this process does the work.",
                WORKERS_WITHIN,
            )
            return None
    # a worker that cannot read what it is sent ends, or never answers
    for of, error in found.run(import_module, __name__, on_error="return").items():
        if isinstance(error, ImportError):
            raise ImportError(
                f"The worker {of} of the dask cluster cannot import scmmgan ({error}). Install it there, or close the client "
                "(`client.close()`), so that this process does the work."
            ) from error
    return found


def _is_worker() -> bool:
    """Whether this is a task of a worker, who would wait for itself."""
    from dask import distributed

    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def _alone(function: Callable[..., Any], parts: Sequence[Sequence[Any]], shared: Sequence[Any]) -> list[Any]:
    with one_thread():
        return [function(*part, *shared) for part in parts]
