"""What a run costs: time, and memory of the process."""

from __future__ import annotations

import os
import threading
import time


class Cost:
    """`seconds` inside, and `memory`: MB that the process held at most, beyond what it held before (NaN where unknown).

    A thread looks every 20 ms. Memory of an accelerator is not counted.
    """

    def __enter__(self) -> Cost:
        self.seconds, self.memory = float("nan"), float("nan")
        self._end, self._start, before = threading.Event(), time.perf_counter(), _held()
        if before is not None:
            self.memory = 0.0

            def look() -> None:
                while not self._end.wait(0.02):
                    self.memory = max(self.memory, (_held() or 0.0) - before)

            self._thread = threading.Thread(target=look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._end.set()
        if self.memory == self.memory:
            self._thread.join()


def _held() -> float | None:
    """MB in memory; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return None
