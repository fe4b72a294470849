"""Steps of a training on a GPU as CUDA graphs: recorded once, and launched as one from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scmmgan.model.defaults import STEPS_BEFORE_GRAPH

logger = logging.getLogger("scmmgan")

Step = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class _Kind:
    """Steps that launch the same kernels: how many were taken, and what was recorded of them."""

    taken: int = 0
    graph: Any = None
    names: list[str] = field(default_factory=list)
    terms: Tensor | None = None
    updates: list[int] = field(default_factory=list)  # of each player


class Recorded:
    """A step (number and rows by modality, to loss terms) whose kernels are launched all at once, where they can be recorded.

    `kind`: steps that it gives one value launch the same kernels; None: such a step is never recorded. The rows of a step,
    and the learning rates of the `players`, are written to where the graph reads them.
    """

    def __init__(self, step: Step, kind: Callable[[int], Hashable], players: list[Any], device: torch.device) -> None:
        self.step, self.kind, self.players = step, kind, players
        self.stream = torch.cuda.Stream(device)
        self.rows: dict[str, Tensor] = {}
        self.kinds: dict[Hashable, _Kind] = {}
        for player in players:
            player.rate_there = torch.zeros((), device=device)

    def __call__(self, step: int, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the step; all batches have the same size."""
        self.rows = self.rows or {m: torch.empty_like(at) for m, at in rows.items()}
        for m, at in rows.items():
            self.rows[m].copy_(at)
        for player in self.players:
            player.rate_there.fill_(player.rate)
        name = self.kind(step)
        kind = self.kinds.setdefault(name, _Kind())
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            # the first ones prepare what libraries set up when they are first called, which no graph may hold
            if name is None or kind.taken < STEPS_BEFORE_GRAPH:
                terms = self.step(step, self.rows)
                # one that has nothing to do is not worth a graph
                kind.taken += bool(terms)
            else:
                terms = self._launch(kind, step)
        current.wait_stream(self.stream)
        return terms

    def _launch(self, kind: _Kind, step: int) -> dict[str, Tensor]:
        """Launch what was recorded, the first time after recording it."""
        if kind.graph is None:
            before = [player.steps for player in self.players]
            try:
                self._record(kind, step)
            except RuntimeError as error:
                # nothing was computed; a driver may not allow it, or the memory not suffice for a copy
                reason = str(error).partition("\n")[0] or type(error).__name__
                logger.warning(
                    "Steps could not be recorded (%s): they are taken one by one, which takes longer.", reason
                )
                for player, then in zip(self.players, before):
                    player.steps = then
                    player.freeze(False)
                self.kind = lambda step: None
                return self.step(step, self.rows)
            kind.updates = [player.steps - then for player, then in zip(self.players, before)]
        else:
            for player, count in zip(self.players, kind.updates):
                player.steps += count
        kind.graph.replay()
        # a copy: the next launch writes to the same place
        return dict(zip(kind.names, kind.terms.clone()))  # type: ignore[union-attr]

    def _record(self, kind: _Kind, step: int) -> None:
        """Record the step; nothing is computed meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            terms = self.step(step, self.rows)
            names, values = list(terms), torch.stack(list(terms.values()))
        kind.graph, kind.names, kind.terms = graph, names, values
