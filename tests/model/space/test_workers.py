"""Work in parts: the same results in the same order, in this process or by the workers of a dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import distributed
import numpy as np
import pytest

from scmmgan.model.space.workers import each


def scaled(x: np.ndarray, of: np.ndarray, by: float) -> tuple[int, np.ndarray]:
    return os.getpid(), of @ x * by


@pytest.fixture
def client() -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def parts(n: int) -> Iterator[tuple[np.ndarray]]:
    return ((np.full((3, 2), i, dtype=np.float32),) for i in range(n))


def executed(client: distributed.Client) -> list[int]:
    return list(client.run(lambda dask_worker: dask_worker.state.executed_count).values())


WEIGHT = np.arange(3, dtype=np.float32)


def test_without_a_client_one_after_another():
    drawn = []
    found = each(scaled, (drawn.append(1) or of for of in parts(3)), WEIGHT, 2.0, spread=True)
    next(found)
    assert len(drawn) == 1
    assert [value.tolist() for _, value in found] == [[6, 6], [12, 12]]


def test_workers_give_the_same_in_the_same_order(client: distributed.Client):
    here = [value for _, value in each(scaled, parts(30), WEIGHT, 0.5, spread=False)]
    assert sum(executed(client)) == 0
    drawn: list[int] = []
    there = each(scaled, ((drawn.append(1), of)[1] for of in parts(30)), WEIGHT, 0.5, spread=True)
    first = next(there)
    # a few ahead of what is worked on, never all
    assert len(drawn) <= 4
    found = [first, *there]
    np.testing.assert_array_equal([value for _, value in found], here)
    done = executed(client)
    assert sum(done) == 30
    assert min(done) > 0


def test_an_error_of_a_part_is_the_error_of_the_call(client: distributed.Client):
    with pytest.raises(ValueError, match="matmul"):
        list(each(scaled, [(np.ones((2, 2)),)], WEIGHT, 1.0, spread=True))


def test_clients_that_can_only_be_awaited_are_left_alone():
    async def program() -> list[int]:
        async with distributed.Client(processes=False, asynchronous=True, dashboard_address=None):
            return [pid for pid, _ in each(scaled, parts(2), WEIGHT, 1.0, spread=True)]

    import asyncio

    assert asyncio.run(program()) == [os.getpid()] * 2
