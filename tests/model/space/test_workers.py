"""Work in parts: the same results in the same order, in this process or by the workers of a dask cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import distributed
import numpy as np
import pytest

from scmmgan.model.space import workers
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


def test_several_parts_in_one_message(client: distributed.Client):
    found = [value for _, value in each(scaled, parts(30), WEIGHT, 0.5, spread=True, together=8)]
    here = [value for _, value in each(scaled, parts(30), WEIGHT, 0.5, spread=False, together=8)]
    np.testing.assert_array_equal(found, here)
    assert sum(executed(client)) == 4


def test_an_error_of_a_part_is_the_error_of_the_call(client: distributed.Client):
    with pytest.raises(ValueError, match="matmul"):
        list(each(scaled, [(np.ones((2, 2)),)] * 5, WEIGHT, 1.0, spread=True))
    # nothing that was sent stays; the client keeps the error
    deadline = time.monotonic() + 5
    while len(client.futures) > 1 or any(client.run(lambda dask_worker: len(dask_worker.data)).values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cluster_that_closes_is_an_error_that_says_so(client: distributed.Client):
    found = each(scaled, parts(9), WEIGHT, 1.0, spread=True)
    next(found)
    client.cluster.close()
    with pytest.raises(RuntimeError, match="worker of the dask cluster has ended, or the cluster"):
        list(found)


def test_workers_without_the_package_are_refused(client: distributed.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "__name__", "scmmgan.nothing")
    with pytest.raises(ImportError, match=r"inproc.* cannot import scmmgan \(No module named 'scmmgan.nothing'\)"):
        list(each(scaled, parts(3), WEIGHT, 1.0, spread=True))
    assert not client.futures


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """One that grows with its work is given a task; where no worker comes the work is done here."""
    with (
        distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        monkeypatch.setattr(workers, "WORKERS_WITHIN", 0.1)
        assert len(list(each(scaled, parts(5), WEIGHT, 1.0, spread=True))) == 5
        assert "no workers, and none came within 0.1 seconds" in caplog.text
        monkeypatch.setattr(workers, "WORKERS_WITHIN", 20)
        cluster.adapt(minimum=0, maximum=1, interval="50ms", wait_count=1_000)
        assert len(list(each(scaled, parts(5), WEIGHT, 1.0, spread=True))) == 5
        assert sum(executed(client)) == 6


def test_a_task_does_its_own_work(client: distributed.Client):
    """With all threads taken by tasks that wait for others none would end."""

    def task(n: int) -> list[np.ndarray]:
        return [value for _, value in each(scaled, parts(n), WEIGHT, 1.0, spread=True)]

    found = client.gather(client.map(task, [3] * 4, pure=False))
    assert [len(of) for of in found] == [3] * 4
    assert sum(executed(client)) == 4


def test_clients_that_are_closed_are_left_alone():
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        # a default one that is closed in here would leave its setting of dask behind
        client = distributed.Client(cluster, set_as_default=False)
        with client.as_current():
            client.close()
            assert len(list(each(scaled, parts(3), WEIGHT, 1.0, spread=True))) == 3


def test_clients_that_can_only_be_awaited_are_left_alone():
    async def program() -> list[int]:
        async with distributed.Client(processes=False, asynchronous=True, dashboard_address=None):
            return [pid for pid, _ in each(scaled, parts(2), WEIGHT, 1.0, spread=True)]

    import asyncio

    assert asyncio.run(program()) == [os.getpid()] * 2
