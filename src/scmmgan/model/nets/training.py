"""The training loop: history, guard against non-finite steps, best weights."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from scmmgan.model.defaults import (
    BAD_STEPS,
    CHECK_EVERY,
    COSTLY_EVERY,
    LOSS_WEIGHTS,
    PENALTY_ROWS,
    PENALTY_WEIGHT,
    RECORD_EVERY,
)
from scmmgan.model.nets import losses
from scmmgan.model.nets.checkpoint import Checkpoint, arrays_of, digest, restore
from scmmgan.model.nets.graphs import Recorded, Step
from scmmgan.model.nets.networks import BatchNorm, NoisyGenerator, frozen_statistics
from scmmgan.model.nets.pinned import pinned, products
from scmmgan.model.nets.processes import ALONE, Processes
from scmmgan.model.problem import Pair

logger = logging.getLogger("scmmgan")

OTHER_TERMS = ("discriminator", "discriminator gradient", "gradient")  # recorded beside the weighted ones


@dataclass(frozen=True)
class LinkLoadings:
    """Linked features in model space: loadings (p × links) of both sides, `sign` and `weight` (links,)."""

    source: Tensor
    target: Tensor
    sign: Tensor
    weight: Tensor


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, as tensors on one device: cells per modality, anchors and links per ordered pair."""

    x: dict[str, Tensor]
    anchors: dict[Pair, Tensor]
    anchor_weight: dict[Pair, Tensor]  # (n,) in [0, 1]
    links: dict[Pair, LinkLoadings]
    rows: dict[str, Tensor]  # row numbers to train on
    held_out: dict[str, Tensor]  # row numbers to check on
    weights: dict[str, float]
    shared: tuple[Pair, ...] = ()  # in one space, where a cell's image is near the cell
    widths: dict[str, int] = field(default_factory=dict)  # of the features where coordinates follow them

    def anchored(self, source: str, target: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and their weights for some cells of the source."""
        return self.anchors[source, target][rows], self.anchor_weight[source, target][rows]

    def features(self, modality: str, cells: Tensor) -> Tensor:
        """Cells without their coordinates: what a generator reads, and what geometry, links and identity compare."""
        return cells[:, : self.widths[modality]] if modality in self.widths else cells


@dataclass(frozen=True)
class Recipe:
    """How long and by what rules a method trains; `plain`: constant rate, nothing clipped or penalised.

    `precision`: of products outside the geometry; weights are float32 in any case.
    """

    max_steps: int
    batch_size: int
    lr: float
    geometry: str | None = "heat"
    cycle_as_real: bool = False
    betas: tuple[float, float] = (0.5, 0.99)
    plain: bool = False
    precision: str = "float32"


@pinned()
def fit(
    generators: dict[Pair, nn.Module],
    discriminators: dict[str, nn.Module],
    data: TrainingData,
    recipe: Recipe,
    *,
    random_state: int,
    device: torch.device,
    progress_bar: bool,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    processes: Processes = ALONE,
) -> dict[str, list[float]]:
    """Train in place and return the history; generators end with the averaged weights that did best on held-out cells.

    With `checkpoint_dir` the state is written at every look at these, and a training that is there goes on, on a CPU to the same bits.
    Several `processes` end with the same networks and history: a batch is shared out among them.
    """
    from tqdm.auto import tqdm

    max_steps, start = recipe.max_steps, 0
    kept = checkpoint_dir is not None or processes.size > 1
    made_of = _made_of(generators, data, recipe, random_state, device, processes.size) if kept else {}
    checkpoint = None if checkpoint_dir is None else Checkpoint(checkpoint_dir, made_of)
    players = [_Player(nets, recipe, processes) for nets in (generators, discriminators)]
    average = [p.detach().clone() for p in players[0].parameters]
    best, best_score = average, math.inf
    history: dict[str, list[float]] = defaultdict(list)
    unread: list[dict[str, Tensor]] = []
    strikes: dict[str, int] = {}
    if checkpoint is not None and (stored := checkpoint.read()) is not None:
        state, arrays = stored
        start, best_score, strikes = state["step"], state["best_score"], state["strikes"]
        history |= state["history"]
        best = [t.clone() for t in (*average, *players[0].buffers)]
        restore(arrays, players, average=average, best=best)
        logger.info("The training goes on at step %d of %d.", start, max_steps)
    processes.check_alike(made_of | {"`checkpoint_dir`": digest([start])}, device)
    take = _taken(data, recipe, players, device, processes)
    bar = tqdm(range(start, max_steps), "scmmgan", disable=not progress_bar or processes.rank > 0, mininterval=0.5)
    for step, rows in zip(bar, islice(_batches(data, recipe.batch_size, random_state, processes), start, None)):
        unread.append(take(step, rows))
        # a step that was skipped has changed no parameter
        torch._foreach_lerp_(average, [p.detach() for p in players[0].parameters], 0.1 if step < 100 else 0.01)
        if (step + 1) % CHECK_EVERY and step + 1 < max_steps:
            continue
        first, terms, unread = step + 1 - len(unread), _read(unread, processes), []
        # of batches that a process saw alone
        processes.mean([*players[0].buffers, *players[1].buffers])
        if broken := _broken(strikes, terms):
            _give_up(broken, step, found=math.isfinite(best_score))
            break
        _record(history, first, terms)
        if history:
            bar.set_postfix({n: f"{v[-1]:.3g}" for n, v in history.items() if _is_loss(n)}, refresh=False)
            score = processes.number(_held_out_score(generators, players[0].parameters, average, data), device)
            # equal scores: the later weights have seen more
            if score <= best_score:
                best, best_score = [a.clone() for a in (*average, *players[0].buffers)], score
        if checkpoint is not None and math.isfinite(best_score) and not processes.rank:
            state = {"step": step + 1, "best_score": best_score, "strikes": strikes, "history": history}
            checkpoint.write(state, arrays_of(players, average=average, best=best))
    _check_found(best_score, strikes)
    processes.first(best)
    _load([*players[0].parameters, *players[0].buffers], best)
    return dict(history)


def _made_of(
    generators: Mapping[Pair, nn.Module],
    data: TrainingData,
    recipe: Recipe,
    random_state: int,
    device: torch.device,
    processes: int,
) -> dict[str, str]:
    """Digests of all that decides a training, by what a user knows it as."""
    by_pair = [of[pair] for of in (data.anchors, data.anchor_weight) for pair in of]
    links = [v for pair, link in data.links.items() for v in (pair, *vars(link).values())]
    cells = (v for of in (data.x, data.rows, data.held_out) for item in of.items() for v in item)
    rules = dict(vars(recipe))
    rules["method"] = (rules.pop("betas"), rules.pop("plain"))
    rules |= {"weights": data.weights, "random_state": random_state, "device": device.type, "devices": processes}
    return {
        "cells": digest([*cells, data.shared, data.widths]),
        "couplings": digest([*data.anchors, *by_pair, *links]),
        "networks": digest(v for pair, net in generators.items() for v in (pair, *net.state_dict().values())),
        "version of PyTorch": digest([torch.__version__]),
        **{f"`{name}`": digest([value]) for name, value in rules.items()},
    }


class _Player:
    """The networks of one side of the game with their optimizer: torch's Adam as a function.

    The class of torch imports its compiler, which takes longer than a short training.
    """

    def __init__(self, nets: Mapping[Any, nn.Module], recipe: Recipe, processes: Processes = ALONE) -> None:
        self.parameters: list[Tensor] = [p for net in nets.values() for p in net.parameters()]
        self.buffers: list[Tensor] = [b for net in nets.values() for b in net.buffers()]
        self.norms = [m for net in nets.values() for m in net.modules() if isinstance(m, BatchNorm)]
        noisy = [m for net in nets.values() for m in net.modules() if isinstance(m, NoisyGenerator)]
        self.noise, self.processes = [m.rng for m in noisy], processes
        for m in noisy:
            m.share = (processes.rank, processes.size)
        self.nets: dict[Any, Callable[[Tensor], Tensor]]
        self.nets = {of: _in_bf16(net) if recipe.precision == "bf16" else net for of, net in nets.items()}
        self.recipe, self.steps = recipe, 0
        self.rate_there: Tensor | None = None  # on the device, where a recorded step reads it
        self.clip = math.inf if recipe.plain else 5.0
        self.mean, self.square = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.counts = [p.new_zeros(()) for p in self.parameters]  # of steps that were taken

    @property
    def rate(self) -> float:
        """Learning rate of the next step: warm-up over 50 steps, linear decay over the last 40 %."""
        recipe, step = self.recipe, self.steps
        return recipe.lr * (1.0 if recipe.plain else min(1.0, (step + 1) / 50, (1 - step / recipe.max_steps) / 0.4))

    def update(self, loss: Tensor, broken: Tensor | None = None) -> Tensor:
        """One clipped step down the loss; returns the gradient norm.

        Where the loss or the gradient is not finite, or the step was `broken` before, nothing changes: decided on the
        device, which the host does not wait for.
        """
        for p in self.parameters:
            p.grad = None
        loss.backward()
        # the loss, too: all must decide alike whether the step is taken
        self.processes.mean([loss.detach(), *(p.grad for p in self.parameters if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        found = ~torch.isfinite(norm + loss.detach())
        state = zip(self.parameters, self.mean, self.square, self.counts)
        moved = [(p, p.grad, *of) for p, *of in state if p.grad is not None]
        parameters, slopes, mean, square, counts = (list(of) for of in zip(*moved))
        with torch.no_grad():
            # where `found_inf` is 1 parameters, moments and counts stay as they are
            adam(
                parameters, slopes, mean, square, [], counts,
                fused=True, found_inf=(found if broken is None else found | broken).float(), amsgrad=False,
                beta1=self.recipe.betas[0], beta2=self.recipe.betas[1],
                lr=self.rate if self.rate_there is None else self.rate_there, weight_decay=0.0, eps=1e-8,
                maximize=False,
            )  # fmt: skip
        self.steps += 1
        return norm

    def freeze(self, frozen: bool) -> None:
        for p in self.parameters:
            p.requires_grad_(not frozen)


def _batches(
    data: TrainingData, batch_size: int, random_state: int, processes: Processes = ALONE
) -> Iterator[dict[str, Tensor]]:
    """Endless row numbers per modality, drawn independently of each other; every cell at most once per epoch.

    All processes draw alike, and each takes every so-many-th of the cells.
    """
    rng = torch.Generator().manual_seed(random_state)
    pools = {m: rows.cpu() for m, rows in data.rows.items()}
    queues = {m: torch.empty(0, dtype=torch.long) for m in pools}
    while True:
        rows = {}
        for m, pool in pools.items():
            size = processes.size * processes.share(batch_size, len(pool), m)
            if len(queues[m]) < size:
                # an epoch at a time goes to the device
                queues[m] = pool[torch.randperm(len(pool), generator=rng)].to(data.x[m].device)
            rows[m], queues[m] = queues[m][processes.rank : size : processes.size], queues[m][size:]
        yield rows


def _in_bf16(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network whose products have the 8 bits of bf16; weights and what comes out are float32."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return net(x).float()

    return call


def _taken(
    data: TrainingData, recipe: Recipe, players: list[_Player], device: torch.device, processes: Processes
) -> Step:
    """A step of its number and rows; on a GPU its kernels are launched as one."""

    def take(step: int, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        with products(recipe.precision):
            return _step(step, rows, data, recipe, *players)

    # processes exchange gradients within a step, and noise is drawn on the CPU
    if device.type != "cuda" or processes.size > 1 or players[0].noise:
        return take

    def kind(step: int) -> bool | None:
        costly = step % COSTLY_EVERY == 0
        # the solver asks whether it has converged
        return None if costly and recipe.geometry in ("subspace", "eigvec") else costly

    return Recorded(take, kind, players, device)


def _step(
    step: int, rows: dict[str, Tensor], data: TrainingData, recipe: Recipe, mappers: _Player, critics: _Player
) -> dict[str, Tensor]:
    """One discriminator step, then one generator step; returns every loss term, on the device."""
    x = {m: data.x[m][at] for m, at in rows.items()}
    mapped = {pair: net(data.features(pair[0], x[pair[0]])) for pair, net in mappers.nets.items()}
    cycled: dict[Pair, Tensor] = {}
    if data.weights["cycle"] or recipe.cycle_as_real:
        with frozen_statistics(mappers.norms):
            cycled = {(s, t): mappers.nets[t, s](data.features(t, y)) for (s, t), y in mapped.items()}
    around: dict[Pair, list[Tensor]] = {}
    if data.weights["consistency"]:
        with frozen_statistics(mappers.norms):
            around = _round_about(mappers.nets, mapped, data)
    out: dict[str, Tensor] = {}
    if data.weights["adversarial"]:
        penalty = step % COSTLY_EVERY == 0 and not recipe.plain
        real = {m: [x[m], *(y for (s, _), y in cycled.items() if s == m and recipe.cycle_as_real)] for m in x}
        loss = torch.stack([_discriminator_loss(m, critics.nets[m], real[m], mapped, penalty=penalty) for m in x]).sum()
        out = {"discriminator": loss.detach(), "discriminator gradient": critics.update(loss)}
    # the generators' gradient flows through the discriminators, not into them
    critics.freeze(True)
    geometry = recipe.geometry if step % COSTLY_EVERY == 0 else None
    terms = _mapper_terms(x, rows, mapped, cycled, around, data, critics, geometry)
    critics.freeze(False)
    scale = len(x) - 1
    parts = [data.weights[name] * (COSTLY_EVERY if name == "geometry" else 1) * value for name, value in terms.items()]
    if not parts and step == 0:
        raise ValueError(
            f"No loss is left to train on: above 0 in `weights` is {[name for name, w in data.weights.items() if w]}, of which none "
            "applies (links need linked features, identity equal genes, consistency three modalities). Raise another."
        )
    if parts:
        broken = ~torch.isfinite(torch.stack(list(out.values())).sum()) if out else None
        out["gradient"] = mappers.update(torch.stack(parts).sum() / scale, broken)
    return {**{name: value.detach() / scale for name, value in terms.items()}, **out}


def _discriminator_loss(
    m: str, net: Callable[[Tensor], Tensor], real: list[Tensor], mapped: dict[Pair, Tensor], *, penalty: bool
) -> Tensor:
    fakes = [net(y.detach()) for (_, target), y in mapped.items() if target == m]
    # batches pass one by one: batch norm and minibatch features must not see measured and mapped cells together
    loss = losses.discriminator_loss(torch.cat([net(x.detach()) for x in real]), fakes)
    if penalty:
        loss = loss + COSTLY_EVERY * PENALTY_WEIGHT * losses.gradient_penalty(net, real[0][:PENALTY_ROWS])
    return loss


def _mapper_terms(
    x: dict[str, Tensor],
    rows: dict[str, Tensor],
    mapped: dict[Pair, Tensor],
    cycled: dict[Pair, Tensor],
    around: dict[Pair, list[Tensor]],
    data: TrainingData,
    critics: _Player,
    geometry: str | None,
) -> dict[str, Tensor]:
    """All generator terms with a weight, each summed over ordered pairs."""
    weights, parts = data.weights, defaultdict(list)
    for (source, target), y in mapped.items():
        if weights["adversarial"]:
            parts["adversarial"].append(losses.adversarial_loss(critics.nets[target](y)))
        if weights["cycle"]:
            parts["cycle"].append(losses.cycle_loss(x[source], cycled[source, target]))
        if weights["anchors"] and (source, target) in data.anchors:
            parts["anchors"].append(losses.anchor_loss(y, *data.anchored(source, target, rows[source])))
        before, after = data.features(source, x[source]), data.features(target, y)
        if weights["links"] and (source, target) in data.links:
            link = data.links[source, target]
            parts["links"].append(losses.link_loss(before @ link.source, after @ link.target, link.sign, link.weight))
        if weights["identity"] and (source, target) in data.shared:
            parts["identity"].append(losses.identity_loss(before, after))
        if around.get((source, target)):
            parts["consistency"].append(losses.consistency_loss(after, around[source, target]))
        if weights["geometry"] and geometry:
            parts["geometry"].append(losses.geometry_loss(geometry, before, after))
    return {name: torch.stack(values).sum() for name, values in parts.items()}


def _round_about(
    generators: Mapping[Pair, Callable[[Tensor], Tensor]], mapped: Mapping[Pair, Tensor], data: TrainingData
) -> dict[Pair, list[Tensor]]:
    """Features (n × p) of mapped cells that go through each third modality to which, and from which, a generator leads."""
    return {
        (s, t): [
            data.features(t, generators[k, t](data.features(k, mapped[s, k])))
            for k in data.x
            if (s, k) in generators and (k, t) in generators
        ]
        for s, t in mapped
    }


def _read(unread: list[dict[str, Tensor]], processes: Processes) -> list[dict[str, float]]:
    """The terms of several steps as floats, means over processes: one transfer from the device."""
    found = torch.stack([value for terms in unread for value in terms.values()])
    processes.mean([found])
    values = iter(found.tolist())
    return [{name: next(values) for name in terms} for terms in unread]


def _broken(strikes: dict[str, int], steps: list[dict[str, float]]) -> list[str]:
    """Terms that were not finite `BAD_STEPS` times in a row, over the steps that evaluate them; `strikes` goes on."""
    found = []
    for terms in steps:
        strikes |= {name: 0 if math.isfinite(v) else strikes.get(name, 0) + 1 for name, v in terms.items()}
        found += [name for name in terms if strikes[name] >= BAD_STEPS and name not in found]
    return found


def _record(history: dict[str, list[float]], first: int, steps: list[dict[str, float]]) -> None:
    """Append the means of every term over `RECORD_EVERY` steps each, of those where all are finite; `first` is before."""
    for start in range(0, len(steps), RECORD_EVERY):
        window = [t for t in steps[start : start + RECORD_EVERY] if all(math.isfinite(v) for v in t.values())]
        if not window:
            continue
        # geometry is not in every step: a fixed order keeps the progress bar still
        seen = {*history, *(name for terms in window for name in terms)}
        history["step"].append(first + min(start + RECORD_EVERY, len(steps)))
        for name in (name for name in (*LOSS_WEIGHTS, *OTHER_TERMS) if name in seen):
            values = [terms[name] for terms in window if name in terms]
            # a short last window may hold no step with geometry
            history[name].append(sum(values) / len(values) if values else math.nan)


def _is_loss(name: str) -> bool:
    return name != "step" and "gradient" not in name


@torch.no_grad()
def _held_out_score(
    generators: dict[Pair, nn.Module], parameters: list[Tensor], average: list[Tensor], data: TrainingData
) -> float:
    """Label-free: errors of all terms but the adversarial and geometry, where trained on, of held-out cells; averaged weights."""
    current = [p.detach().clone() for p in parameters]
    _load(parameters, average)
    for net in generators.values():
        net.eval()
    x = {m: data.x[m][at] for m, at in data.held_out.items()}
    weights, score = data.weights, torch.zeros((), device=average[0].device)
    mapped = {pair: net(data.features(pair[0], x[pair[0]])) for pair, net in generators.items()}
    around = _round_about(generators, mapped, data) if weights["consistency"] else {}
    for (source, target), y in mapped.items():
        before, after = data.features(source, x[source]), data.features(target, y)
        if weights["cycle"]:
            score += losses.cycle_loss(x[source], generators[target, source](after))
        if weights["anchors"] and (source, target) in data.anchors:
            score += losses.anchor_loss(y, *data.anchored(source, target, data.held_out[source]))
        if weights["identity"] and (source, target) in data.shared:
            score += losses.identity_loss(before, after)
        if around.get((source, target)):
            score += losses.consistency_loss(after, around[source, target])
        if weights["links"] and (source, target) in data.links:
            link = data.links[source, target]
            score += losses.link_loss(before @ link.source, after @ link.target, link.sign, link.weight)
    _load(parameters, current)
    for net in generators.values():
        net.train()
    found = float(score)
    return found if math.isfinite(found) else math.inf


@torch.no_grad()
def _load(parameters: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, values)


def _check_found(best_score: float, strikes: Mapping[str, int]) -> None:
    """ValueError where no look at the held-out cells found finite losses."""
    if not math.isfinite(best_score):
        broken = [name for name, count in strikes.items() if count]
        raise ValueError(
            f"Losses or gradients were not finite: {', '.join(broken)}. Lower `lr`, or that term's weight."
        )


def _give_up(broken: list[str], step: int, *, found: bool) -> None:
    """Say which term broke; without any good weights to fall back on that is an error."""
    message = (
        f"{BAD_STEPS} times in a row a loss or gradient was not finite, the last at step {step}: {', '.join(broken)}. "
        "Lower `lr`, or set the weight of that term lower in `weights`."
    )
    if not found:
        raise ValueError(message)
    logger.warning("%s Training stopped; the best weights so far are used.", message)
