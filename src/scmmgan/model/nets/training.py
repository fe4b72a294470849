"""The training loop on lightning-fabric: history, guard against non-finite steps, best weights."""

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
from lightning_fabric import Fabric
from torch import Tensor, nn

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
from scmmgan.model.nets.networks import BatchNorm, NoisyGenerator, frozen_statistics
from scmmgan.model.nets.pinned import pinned
from scmmgan.model.problem import Pair

logger = logging.getLogger("scmmgan")

OTHER_TERMS = ("pairs", "discriminator", "discriminator gradient", "gradient")  # recorded beside the weighted ones


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
    known: dict[Pair, Tensor]  # (n,) 1 where the anchor is a known partner, else 0
    links: dict[Pair, LinkLoadings]
    rows: dict[str, Tensor]  # row numbers to train on
    held_out: dict[str, Tensor]  # row numbers to check on
    weights: dict[str, float]
    shared: bool = False  # all modalities in one space, where a cell's image is near the cell
    widths: dict[str, int] = field(default_factory=dict)  # of the features where coordinates follow them

    def anchored(self, source: str, target: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and their weights for some cells of the source."""
        return self.anchors[source, target][rows], self.anchor_weight[source, target][rows]

    def features(self, modality: str, cells: Tensor) -> Tensor:
        """Cells without their coordinates: what a generator reads, and what geometry, links and identity compare."""
        return cells[:, : self.widths[modality]] if modality in self.widths else cells


@dataclass(frozen=True)
class Recipe:
    """How long and by what rules a method trains; `plain`: constant rate, nothing clipped, annealed or penalised."""

    max_steps: int
    batch_size: int
    lr: float
    geometry: str | None = "heat"
    cycle_as_real: bool = False
    betas: tuple[float, float] = (0.5, 0.99)
    plain: bool = False


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
) -> dict[str, list[float]]:
    """Train in place and return the history; generators end with the averaged weights that did best on held-out cells.

    With `checkpoint_dir` the state is written at every look at these, and a training that is there goes on, to the same bits.
    """
    from tqdm.auto import tqdm

    fabric, max_steps = _fabric(device), recipe.max_steps
    made_of = None if checkpoint_dir is None else _made_of(generators, data, recipe, random_state, device)
    checkpoint = None if checkpoint_dir is None or made_of is None else Checkpoint(checkpoint_dir, made_of)
    players = [_Player(fabric, nets, recipe) for nets in (generators, discriminators)]
    average = [p.detach().clone() for p in players[0].parameters]
    best, best_score = average, math.inf
    history: dict[str, list[float]] = defaultdict(list)
    window: list[dict[str, float]] = []
    strikes: dict[str, int] = {}
    start = 0
    if checkpoint is not None and (stored := checkpoint.read()) is not None:
        state, arrays = stored
        start, best_score, strikes = state["step"], state["best_score"], state["strikes"]
        history |= state["history"]
        best = [t.clone() for t in (*average, *players[0].buffers)]
        restore(arrays, players, average=average, best=best)
        logger.info("The training goes on at step %d of %d.", start, max_steps)
    bar = tqdm(range(start, max_steps), desc="scmmgan", disable=not progress_bar, mininterval=0.5)
    for step, rows in zip(bar, islice(_batches(data, recipe.batch_size, random_state), start, None)):
        terms = _step(step, rows, data, recipe, *players)
        # counted by term, over the steps that evaluate it
        strikes |= {name: 0 if math.isfinite(v) else strikes.get(name, 0) + 1 for name, v in terms.items()}
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if max(strikes.values()) >= BAD_STEPS:
            _give_up(broken, step, found=math.isfinite(best_score))
            break
        if not broken:
            torch._foreach_lerp_(average, [p.detach() for p in players[0].parameters], 0.1 if step < 100 else 0.01)
            window.append(terms)
        last = step + 1 == max_steps
        if window and ((step + 1) % RECORD_EVERY == 0 or last):
            bar.set_postfix(_record(history, step + 1, window), refresh=False)
            window = []
        if history and ((step + 1) % CHECK_EVERY == 0 or last):
            score = _held_out_score(generators, players[0].parameters, average, data)
            # equal scores: the later weights have seen more
            if score <= best_score:
                best, best_score = [a.clone() for a in (*average, *players[0].buffers)], score
        if checkpoint is not None and math.isfinite(best_score) and ((step + 1) % CHECK_EVERY == 0 or last):
            state = {"step": step + 1, "best_score": best_score, "strikes": strikes, "history": history}
            checkpoint.write(state, arrays_of(players, average=average, best=best))
    if not math.isfinite(best_score):
        broken = [name for name, count in strikes.items() if count]
        raise ValueError(
            f"Losses or gradients were not finite: {', '.join(broken)}. Lower `lr`, or that term's weight."
        )
    _load([*players[0].parameters, *players[0].buffers], best)
    return dict(history)


def _made_of(
    generators: Mapping[Pair, nn.Module], data: TrainingData, recipe: Recipe, random_state: int, device: torch.device
) -> dict[str, str]:
    """Digests of all that decides a training, by what a user knows it as."""
    by_pair = [of[pair] for of in (data.anchors, data.anchor_weight, data.known) for pair in of]
    links = [v for pair, link in data.links.items() for v in (pair, *vars(link).values())]
    settings = (recipe, data.weights, data.shared, data.widths, random_state, device, torch.__version__)
    return {
        "cells": digest(v for of in (data.x, data.rows, data.held_out) for item in of.items() for v in item),
        "couplings": digest([*data.anchors, *by_pair, *links]),
        "networks": digest(v for pair, net in generators.items() for v in (pair, *net.state_dict().values())),
        "settings": digest(settings),
    }


def _fabric(device: torch.device) -> Fabric:
    """Lightning on that device: of several GPUs the one that is named, else the current one."""
    if device.type != "cuda":
        return Fabric(accelerator=device.type, devices=1)
    return Fabric(accelerator="cuda", devices=[torch.cuda.current_device() if device.index is None else device.index])


class _Player:
    """The networks of one side of the game with their optimizer."""

    def __init__(self, fabric: Fabric, nets: Mapping[Any, nn.Module], recipe: Recipe) -> None:
        self.parameters: list[Tensor] = [p for net in nets.values() for p in net.parameters()]
        self.buffers: list[Tensor] = [b for net in nets.values() for b in net.buffers()]
        self.norms = [m for net in nets.values() for m in net.modules() if isinstance(m, BatchNorm)]
        self.noise = [m.rng for net in nets.values() for m in net.modules() if isinstance(m, NoisyGenerator)]
        self.nets = {name: fabric.setup_module(net) for name, net in nets.items()}
        adam = torch.optim.Adam(self.parameters, lr=recipe.lr, betas=recipe.betas, fused=True)
        self.optimizer: Any = fabric.setup_optimizers(adam)
        self.clip = math.inf if recipe.plain else 5.0

        def rate(step: int) -> float:
            # warm-up over 50 steps, linear decay over the last 40 %
            return 1.0 if recipe.plain else min(1.0, (step + 1) / 50, (1 - step / recipe.max_steps) / 0.4)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
        self.backward: Callable[[Tensor], None] = fabric.backward

    def update(self, loss: Tensor) -> float:
        """One clipped step down the loss; returns the gradient norm. A non-finite loss or gradient changes nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(float(loss.detach())):
            return 0.0
        self.backward(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        if math.isfinite(norm):
            self.optimizer.step()
            # the rate counts steps that were taken
            self.schedule.step()
        return norm

    def freeze(self, frozen: bool) -> None:
        for p in self.parameters:
            p.requires_grad_(not frozen)


def _batches(data: TrainingData, batch_size: int, random_state: int) -> Iterator[dict[str, Tensor]]:
    """Endless row numbers per modality, drawn independently of each other; every cell at most once per epoch."""
    rng = torch.Generator().manual_seed(random_state)
    pools = {m: rows.cpu() for m, rows in data.rows.items()}
    queues = {m: torch.empty(0, dtype=torch.long) for m in pools}
    while True:
        rows = {}
        for m, pool in pools.items():
            size = min(batch_size, len(pool))
            if len(queues[m]) < size:
                queues[m] = pool[torch.randperm(len(pool), generator=rng)]
            rows[m], queues[m] = queues[m][:size].to(data.x[m].device), queues[m][size:]
        yield rows


def _step(
    step: int, rows: dict[str, Tensor], data: TrainingData, recipe: Recipe, mappers: _Player, critics: _Player
) -> dict[str, float]:
    """One discriminator step, then one generator step; returns every loss term as a float."""
    x = {m: data.x[m][at] for m, at in rows.items()}
    mapped = {pair: net(data.features(pair[0], x[pair[0]])) for pair, net in mappers.nets.items()}
    cycled: dict[Pair, Tensor] = {}
    if data.weights["cycle"] or recipe.cycle_as_real:
        with frozen_statistics(mappers.norms):
            cycled = {(s, t): mappers.nets[t, s](data.features(t, y)) for (s, t), y in mapped.items()}
    out: dict[str, float] = {}
    if data.weights["adversarial"]:
        penalty = step % COSTLY_EVERY == 0 and not recipe.plain
        real = {m: [x[m], *(y for (s, _), y in cycled.items() if s == m and recipe.cycle_as_real)] for m in x}
        loss = torch.stack([_discriminator_loss(m, critics.nets[m], real[m], mapped, penalty=penalty) for m in x]).sum()
        out["discriminator"] = float(loss.detach())
        out["discriminator gradient"] = critics.update(loss)
        if not all(math.isfinite(value) for value in out.values()):
            return out
    # the generators' gradient flows through the discriminators, not into them
    critics.freeze(True)
    geometry = recipe.geometry if step % COSTLY_EVERY == 0 else None
    terms = _mapper_terms(x, rows, mapped, cycled, data, critics, geometry)
    critics.freeze(False)
    # anneal · L + (1 - anneal) · L of known pairs: theirs keep their full weight to the end
    anneal = 1.0 if recipe.plain else max(0.0, 1 - step / recipe.max_steps / 0.7)
    anchors = data.weights["anchors"]
    weights = {**data.weights, "anchors": anchors * anneal, "pairs": anchors * (1 - anneal)}
    scale = len(x) - 1
    parts = [weights[name] * (COSTLY_EVERY if name == "geometry" else 1) * value for name, value in terms.items()]
    if not parts and step == 0:
        raise ValueError(
            "No loss is left to train on: what has a weight above 0 in `weights` needs links. Raise another."
        )
    gradient = mappers.update(torch.stack(parts).sum() / scale) if parts else 0.0
    return {**{name: float(value.detach()) / scale for name, value in terms.items()}, **out, "gradient": gradient}


def _discriminator_loss(
    m: str, net: nn.Module, real: list[Tensor], mapped: dict[Pair, Tensor], *, penalty: bool
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
            anchors, weight = data.anchored(source, target, rows[source])
            parts["anchors"].append(losses.anchor_loss(y, anchors, weight))
            if data.known[source, target].any():
                known = weight * data.known[source, target][rows[source]]
                share = known.sum() / weight.sum().clamp(min=1e-9)
                parts["pairs"].append(share * losses.anchor_loss(y, anchors, known))
        before, after = data.features(source, x[source]), data.features(target, y)
        if weights["links"] and (source, target) in data.links:
            link = data.links[source, target]
            parts["links"].append(losses.link_loss(before @ link.source, after @ link.target, link.sign, link.weight))
        if weights["identity"] and data.shared:
            parts["identity"].append(losses.identity_loss(before, after))
        if weights["geometry"] and geometry:
            # looked up by name, as all terms are
            parts["geometry"].append(getattr(losses, f"{geometry}_loss")(before, after))
    return {name: torch.stack(values).sum() for name, values in parts.items()}


def _record(history: dict[str, list[float]], step: int, window: list[dict[str, float]]) -> dict[str, str]:
    """Append the window's mean of every term, and return the losses as text for the progress bar."""
    history["step"].append(step)
    # geometry is not in every step: a fixed order keeps the progress bar still
    seen = {*history, *(name for terms in window for name in terms)}
    names = [name for name in (*LOSS_WEIGHTS, *OTHER_TERMS) if name in seen]
    for name in names:
        values = [terms[name] for terms in window if name in terms]
        # a short last window may hold no step with geometry
        history[name].append(sum(values) / len(values) if values else math.nan)
    return {name: f"{history[name][-1]:.3g}" for name in names if "gradient" not in name}


@torch.no_grad()
def _held_out_score(
    generators: dict[Pair, nn.Module], parameters: list[Tensor], average: list[Tensor], data: TrainingData
) -> float:
    """Label-free: cycle, anchor, identity and link errors, where trained on, of held-out cells; averaged weights."""
    current = [p.detach().clone() for p in parameters]
    _load(parameters, average)
    for net in generators.values():
        net.eval()
    x = {m: data.x[m][at] for m, at in data.held_out.items()}
    weights, score = data.weights, 0.0
    for (source, target), net in generators.items():
        before = data.features(source, x[source])
        y = net(before)
        after = data.features(target, y)
        if weights["cycle"]:
            score += float(losses.cycle_loss(x[source], generators[target, source](after)))
        if weights["anchors"] and (source, target) in data.anchors:
            score += float(losses.anchor_loss(y, *data.anchored(source, target, data.held_out[source])))
        if weights["identity"] and data.shared:
            score += float(losses.identity_loss(before, after))
        if weights["links"] and (source, target) in data.links:
            link = data.links[source, target]
            score += float(losses.link_loss(before @ link.source, after @ link.target, link.sign, link.weight))
    _load(parameters, current)
    for net in generators.values():
        net.train()
    return score if math.isfinite(score) else math.inf


@torch.no_grad()
def _load(parameters: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, values)


def _give_up(broken: list[str], step: int, *, found: bool) -> None:
    """Say which term broke; without any good weights to fall back on that is an error."""
    message = (
        f"{BAD_STEPS} times in a row a loss or gradient was not finite, the last at step {step}: {', '.join(broken)}. "
        "Lower `lr`, or set the weight of that term lower in `weights`."
    )
    if not found:
        raise ValueError(message)
    logger.warning("%s Training stopped; the best weights so far are used.", message)
