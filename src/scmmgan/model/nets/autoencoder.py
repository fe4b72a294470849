"""Autoencoders of all modalities with one latent space: input, losses, training loop, state. Methods add their own.

A method is a `System`: its networks, its loss terms, and its schedule where that differs.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmmgan.model.defaults import (
    BAD_STEPS,
    BATCH_SIZE,
    CHECK_EVERY,
    LEARNING_RATE,
    MAP_CHUNK,
    MAX_HIDDEN,
    MAX_STEPS,
    N_CHECKS,
)
from scmmgan.model.nets.aligner import split
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.nets.networks import BatchNorm, frozen_statistics
from scmmgan.model.nets.pinned import pinned
from scmmgan.model.problem import Pair, Problem, Values
from scmmgan.model.space.reading import Reading, fit_reading

logger = logging.getLogger("scmmgan")

Nets = dict[str, nn.Module]
Cells = dict[str, Tensor]  # by modality


# --- losses ------------------------------------------------------------------------------------------------------


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over cells and dimensions."""
    return ((a - b) ** 2).mean()


def absolute_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference over cells and dimensions."""
    return (a - b).abs().mean()


def least_squares(first: Tensor, second: Tensor) -> Tensor:
    """Adversary of least squares: mean D(first)² + mean (D(second) - 1)²; encoders move with the sides exchanged."""
    return (first**2).mean() + ((second - 1) ** 2).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of cells with labels (codes, -1: none); 0 where no cell has one."""
    known = labels >= 0
    return F.cross_entropy(logits[known], labels[known]) if bool(known.any()) else logits.sum() * 0


def at_most(width: int, hidden: int | str | None) -> int:
    """Width of a hidden layer: as published up to 512, as published, or a number that it may not exceed."""
    return width if hidden == "published" else min(width, MAX_HIDDEN if hidden is None else int(hidden))


def adam(parameters: Iterable[Any], *, lr: float, **how: Any) -> torch.optim.Optimizer:
    """Adam, of parameters or groups of them."""
    return torch.optim.Adam(parameters, lr=lr, fused=True, **how)


# --- methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a system trains on: cells (n × p) of each modality, label codes (n,) of those that have any, and all that is known.

    `rows` are trained on, `held_out` are not. `readings`: what the columns of the cells are. `options`: all of the system's own.
    """

    problem: Problem
    readings: Mapping[str, Reading]
    x: Cells
    labels: Cells
    rows: Cells
    held_out: Cells
    batch_size: int
    max_steps: int
    geometry: str | None
    random_state: int
    weights: Mapping[str, float]
    options: Mapping[str, Any]

    @property
    def first_two(self) -> Pair:
        """The two modalities of a method for two."""
        a, b = list(self.x)[:2]
        return a, b

    @property
    def pairs(self) -> Tensor | None:
        """Row numbers (k × 2) of known pairs of the first two modalities."""
        found = self.problem.of(*self.first_two).pairs
        return None if found is None else torch.as_tensor(found, device=self.x[self.first_two[0]].device)


@dataclass(frozen=True)
class Batch:
    """Cells of one step, by modality: row numbers (B,), what is read (B × p) and latent cells (B × q)."""

    step: int
    rows: Cells
    x: Cells
    z: Cells


class System:
    """Encoders and decoders of all modalities, and what they are trained by. Two modalities, unless `most` says otherwise.

    A subclass has `networks`, from the widths of what is read and the limit of hidden layers; `terms`, the losses by name,
    which `weights` weigh; and `critic_loss` where `build` made a critic. `options`: settings that it alone has, with their
    defaults, True, False or a number from 0 to 1.
    """

    latent: ClassVar[int]
    weights: ClassVar[dict[str, float]]
    max_steps: ClassVar[int] = MAX_STEPS
    batch_size: ClassVar[int] = BATCH_SIZE
    lr: ClassVar[float] = LEARNING_RATE
    geometry: ClassVar[str | None] = None
    geometries: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, bool | float]] = {}
    most: ClassVar[int | None] = 2
    n_pcs: ClassVar[int] = 0  # 0: features are read
    critic_steps: ClassVar[int] = 1
    critic_first: ClassVar[bool] = True
    clip: ClassVar[float] = math.inf

    def __init__(self, task: Task, hidden: int | str | None, device: str) -> None:
        self.task, self.hidden = task, hidden
        self.encoders, self.decoders = self.networks({m: r.width for m, r in task.readings.items()}, hidden)
        self.critics: Nets = {}
        self.others: Nets = {}  # trained with the encoders and decoders, not stored
        self.build()
        for net in (*self.encoders.values(), *self.decoders.values(), *self.critics.values(), *self.others.values()):
            net.to(device)

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[Nets, Nets]:
        """Encoders (p → q, or more: the first q are the latent cell) and decoders (q → p) of all modalities."""
        raise TypeError("a system needs `networks`")

    @staticmethod
    def widest(widths: Mapping[str, int]) -> int:
        """Width of the widest hidden layer as published."""
        return 0

    def build(self) -> None:
        """Add critics and other networks; refuse what cannot be used."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of encoders and decoders, by the names in `weights`."""
        raise TypeError("a system needs `terms`")

    def critic_loss(self, batch: Batch) -> Tensor:
        """Loss of the critics on a batch whose latent cells do not train."""
        raise TypeError("a system with critics needs `critic_loss`")

    def optimizers(self, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        """Of encoders, decoders and other networks; and of the critics."""
        critic = [p for net in self.critics.values() for p in net.parameters()]
        return adam(self.parameters(), lr=lr), adam(critic, lr=lr) if critic else None

    def schedule(self, step: int) -> float:
        """Factor of the learning rate."""
        return 1.0

    def encode(self, x: Cells) -> Cells:
        """Latent cells in training."""
        return {m: self.encoders[m](v)[:, : self.latent] for m, v in x.items()}

    def batches(self) -> Iterator[Cells]:
        """Row numbers of each modality, drawn independently of the others."""
        draws = {
            m: draw(v, self.task.batch_size, self.task.random_state + i)
            for i, (m, v) in enumerate(self.task.rows.items())
        }
        while True:
            yield {m: next(rows) for m, rows in draws.items()}

    def done(self, step: int, loss: float) -> bool:
        """Whether training may end before the last step."""
        return False

    # --- for subclasses and the loop

    def parameters(self) -> list[Tensor]:
        """Of encoders, decoders and other networks, each once."""
        nets = (*self.encoders.values(), *self.decoders.values(), *self.others.values())
        return list(dict.fromkeys(p for net in nets for p in net.parameters()))

    def foreign(self) -> AbstractContextManager[None]:
        """Inside, batch normalisation counts nothing: what passes was not measured in the modality."""
        nets = (*self.encoders.values(), *self.decoders.values())
        return frozen_statistics(m for net in nets for m in net.modules() if isinstance(m, BatchNorm))

    def reconstruction(self, batch: Batch, error: Any = squared_error) -> Tensor:
        """Error of F_m(z_m) against x_m, summed over modalities."""
        return torch.stack([error(batch.x[m], self.decoders[m](z)) for m, z in batch.z.items()]).sum()

    def latent_cycle(self, z: Cells, pairs: Sequence[Pair]) -> Tensor:
        """Mean squared z_a - E_b(F_b(z_a)), summed over both directions of all pairs."""
        with self.foreign():
            there = {(s, t): self.decoders[t](z[s]) for a, b in pairs for s, t in ((a, b), (b, a))}
            errors = [squared_error(z[s], self.encoders[t](y)[:, : self.latent]) for (s, t), y in there.items()]
        return torch.stack(errors).sum()

    def anchored(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Latent cells (k × q) of both sides of pairs (k × 2)."""
        a, b = self.task.first_two
        with self.foreign():
            z = [self.encoders[m](self.task.x[m][pairs[:, i]])[:, : self.latent] for i, m in enumerate((a, b))]
        return z[0], z[1]

    def train(self, on: bool) -> None:
        """Training or inference mode of encoders and decoders."""
        for net in (*self.encoders.values(), *self.decoders.values()):
            net.train(on)


def draw(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of row numbers, in a new order every epoch; without replacement."""
    rng = torch.Generator().manual_seed(seed)
    pool, size = rows.cpu(), min(size, len(rows))
    while True:
        order = pool[torch.randperm(len(pool), generator=rng)]
        # the rest of an epoch may be too small for batch normalisation
        for start in range(0, len(pool) - size + 1, size):
            yield order[start : start + size].to(rows.device)


# --- training ----------------------------------------------------------------------------------------------------


def train(
    system: System, weights: Mapping[str, float], lr: float, *, progress_bar: bool
) -> tuple[dict[str, list[float]], int]:
    """Train in place; the history, and the step whose weights encoders and decoders end with: least error of held-out cells."""
    from tqdm.auto import tqdm

    main, critic = system.optimizers(lr)
    # nothing follows a critic whose term has the weight 0
    critic = critic if weights.get("adversarial", 1) else None
    optimizers = [main] if critic is None else [main, critic]
    rates = [[group["lr"] for group in of.param_groups] for of in optimizers]
    steps, best, best_score, used = system.task.max_steps, _weights(system), math.inf, 0
    every = max(CHECK_EVERY, steps // N_CHECKS)
    history: dict[str, list[float]] = defaultdict(list)
    window: list[dict[str, float]] = []
    strikes = 0
    bar = tqdm(range(steps), desc="scmmgan", disable=not progress_bar, mininterval=0.5)
    for step, rows in zip(bar, system.batches()):
        for optimizer, own in zip(optimizers, rates):
            for group, rate in zip(optimizer.param_groups, own):
                group["lr"] = rate * system.schedule(step)
        terms = _step(step, rows, system, weights, main, critic)
        if not any(weights.get(name) for name in terms):
            there = [name for name in terms if name in weights]
            raise ValueError(
                f"All `weights` of what is known are 0, of {there}: nothing would be trained. Leave one above 0, or give what the "
                "other terms need."
            )
        finite = all(math.isfinite(value) for value in terms.values())
        strikes = 0 if finite else strikes + 1
        if strikes >= BAD_STEPS:
            raise ValueError(
                f"{BAD_STEPS} times in a row a loss was not finite, the last at step {step}: {terms}. Lower `lr`, or the weight of "
                "that term in `weights`."
            )
        window += [terms] if finite else []
        last = step + 1 == steps or (finite and system.done(step, terms["loss"]))
        if window and ((step + 1) % every == 0 or last):
            score = held_out_error(system)
            history["step"].append(step + 1)
            for name in window[0]:
                history[name].append(sum(of[name] for of in window) / len(window))
            history["held out"].append(score)
            bar.set_postfix({name: f"{of[-1]:.3g}" for name, of in history.items() if name != "step"}, refresh=False)
            window = []
            # equal scores: the later weights have seen more
            if score <= best_score:
                best, best_score, used = _weights(system), score, step + 1
        if last:
            break
    if not math.isfinite(best_score):
        raise ValueError("Losses were not finite at any look at the held-out cells. Lower `lr`.")
    for net, state in zip((*system.encoders.values(), *system.decoders.values()), best):
        net.load_state_dict(state)
    return dict(history), used


def _weights(system: System) -> list[dict[str, Tensor]]:
    nets = (*system.encoders.values(), *system.decoders.values())
    return [{name: value.detach().clone() for name, value in net.state_dict().items()} for net in nets]


def _step(
    step: int,
    rows: Cells,
    system: System,
    weights: Mapping[str, float],
    main: torch.optim.Optimizer,
    critic: torch.optim.Optimizer | None,
) -> dict[str, float]:
    """Steps of the critics, before or after one step of all else; every term as a float."""
    x = {m: system.task.x[m][at] for m, at in rows.items()}
    z, out = system.encode(x), {}
    if critic is not None and system.critic_first:
        out["discriminator"] = _critic_steps(
            system, Batch(step, rows, x, {m: v.detach() for m, v in z.items()}), critic
        )
    # the gradient flows through the critics, not into them
    _freeze(system.critics, True)
    terms = system.terms(Batch(step, rows, x, z))
    loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    main.zero_grad(set_to_none=True)
    if bool(torch.isfinite(loss)):
        loss.backward()
        if math.isfinite(system.clip):
            nn.utils.clip_grad_norm_(system.parameters(), system.clip)
        main.step()
    _freeze(system.critics, False)
    if critic is not None and not system.critic_first:
        system.train(False)
        with torch.no_grad():
            z = system.encode(x)
        system.train(True)
        out["discriminator"] = _critic_steps(system, Batch(step, rows, x, z), critic)
    return {**{name: float(value.detach()) for name, value in terms.items()}, **out, "loss": float(loss.detach())}


def _critic_steps(system: System, batch: Batch, critic: torch.optim.Optimizer) -> float:
    for _ in range(system.critic_steps):
        loss = system.critic_loss(batch)
        critic.zero_grad(set_to_none=True)
        loss.backward()
        critic.step()
    return float(loss.detach())


def _freeze(nets: Nets, frozen: bool) -> None:
    for net in nets.values():
        net.requires_grad_(not frozen)


@torch.no_grad()
def held_out_error(system: System) -> float:
    """Without labels or pairs: reconstruction, and latent cycle over the latent variance, of cells that do not train."""
    system.train(False)
    x = {m: system.task.x[m][rows] for m, rows in system.task.held_out.items()}
    z = {m: system.encoders[m](v)[:, : system.latent] for m, v in x.items()}
    score = sum(float(squared_error(x[m], system.decoders[m](v))) for m, v in z.items())
    for s, t in permutations(z, 2):
        back = system.encoders[t](system.decoders[t](z[s]))[:, : system.latent]
        score += float(squared_error(z[s], back) / z[s].var(0).mean().clamp(min=1e-12))
    system.train(True)
    return score if math.isfinite(score) else math.inf


# --- fit, embed, decode, state -----------------------------------------------------------------------------------


class Autoencoder:
    """Fitted encoders and decoders on the CPU, with what they read: embeds and decodes each cell on its own."""

    def __init__(
        self, readings: Mapping[str, Reading], encoders: Nets, decoders: Nets, latent: int, hidden: int | str | None
    ) -> None:
        self.readings = dict(readings)
        self.encoders, self.decoders, self.latent, self.hidden = encoders, decoders, latent, hidden
        for net in (*encoders.values(), *decoders.values()):
            net.to("cpu").eval()

    @property
    def modalities(self) -> list[str]:
        """Names in order."""
        return list(self.readings)

    def needed(self, modality: str) -> np.ndarray:
        """Positions of the features that are read."""
        return self.readings[modality].read

    def shares(self, modality: str) -> np.ndarray:
        """How much (g,) of what is read each feature carries: alike, or by the axes that it enters."""
        reading = self.readings[modality]
        found = np.zeros(len(reading.mean))
        found[reading.read] = (reading.axes**2).sum(0) if len(reading.axes) else 1
        return found / max(found.sum(), 1e-300)

    def read(self, values: Values, columns: np.ndarray, modality: str) -> np.ndarray:
        """What is read (n × p) of cells, from their values (n × g') of the features at `columns`."""
        return self.readings[modality].of_values(values, columns)

    def embed(self, x: np.ndarray, modality: str) -> np.ndarray:
        """Latent cells (n × q, float32) of what was read (n × p) of cells of a modality."""
        return self._pass(self.encoders[modality], x)[:, : self.latent]

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        """What would be read of them (n × p') in the target."""
        return self._pass(self.decoders[target], self.embed(x, source))

    def decode(self, z: np.ndarray, target: str, features: np.ndarray) -> np.ndarray:
        """Values (n × f) of features of the target, of latent cells (n × q)."""
        starts = range(0, max(len(z), 1), MAP_CHUNK)
        parts = [z[i : i + MAP_CHUNK] for i in starts]
        reading, net = self.readings[target], self.decoders[target]
        return np.concatenate([reading.inverse(self._pass(net, part), part, features) for part in parts])

    @pinned()
    @torch.inference_mode()
    def _pass(self, net: nn.Module, x: np.ndarray) -> np.ndarray:
        starts = range(0, max(len(x), 1), MAP_CHUNK)
        parts = [torch.from_numpy(np.array(x[i : i + MAP_CHUNK], dtype=np.float32, order="C")) for i in starts]
        return np.concatenate([net(part).numpy() for part in parts])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON-able settings and plain arrays from which `from_state` rebuilds it."""
        arrays: dict[str, np.ndarray] = {}
        for kind, nets in (("encoder", self.encoders), ("decoder", self.decoders)):
            for i, net in enumerate(nets.values()):
                found = net.state_dict()
                arrays |= {f"{kind}:{i}:{name}": value.numpy().copy() for name, value in found.items()}
        for i, reading in enumerate(self.readings.values()):
            arrays |= {f"reading:{i}:{name}": value for name, value in reading.state().items()}
        return {"hidden": self.hidden}, arrays

    @classmethod
    @pinned()
    def from_state(cls, system: type[System], config: Mapping[str, Any], arrays: Mapping[str, Any]) -> Autoencoder:
        """Rebuild it from what `state` gave, and the record's config."""
        names, hidden = [str(m) for m in config["modalities"]], config["hidden"]
        parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        for name, value in arrays.items():
            kind, number, rest = str(name).split(":", 2)
            parts[f"{kind}:{number}"][rest] = np.asarray(value)
        readings = {m: Reading.from_state(parts[f"reading:{i}"]) for i, m in enumerate(names)}
        # without memory: the weights come from the record
        with torch.device("meta"):
            encoders, decoders = system.networks({m: r.width for m, r in readings.items()}, hidden)
        for kind, nets in (("encoder", encoders), ("decoder", decoders)):
            for i, net in enumerate(nets.values()):
                _load(net, parts[f"{kind}:{i}"])
        return cls(readings, encoders, decoders, system.latent, hidden)


def _load(net: nn.Module, found: Mapping[str, np.ndarray]) -> None:
    """ValueError unless the arrays are those of the network, of its shapes, and finite."""
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    shapes = {name: value.shape for name, value in found.items()}
    if wrong := sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)):
        raise ValueError(f"weights {wrong[:3]} do not have the shapes that belong to their widths")
    if bad := [name for name, value in found.items() if not np.isfinite(value).all()]:
        raise ValueError(f"weights {bad[:3]} are not finite")
    net.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in found.items()}, assign=True)


def fit(system: type[System], problem: Problem, settings: Mapping[str, Any]) -> Fitted:
    """Read all modalities, train a system, and embed all cells."""
    found = {m: fit_reading(of, _linked(problem, m), n_pcs=system.n_pcs) for m, of in problem.modalities.items()}
    readings = {m: reading for m, (reading, _) in found.items()}
    x = {m: reading.of_matrix(matrix) for m, (reading, matrix) in found.items()}
    hidden, seed = settings["hidden"], settings["random_state"]
    published = system.widest({m: r.width for m, r in readings.items()})
    if published > at_most(published, hidden):
        logger.info("Hidden layers have at most %d units, published are %d: `hidden='published'` for those.", at_most(published, hidden), published)  # fmt: skip
    with pinned(), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators, too, and they are not restored
        torch.default_generator.manual_seed(seed)
        made = system(_task(problem, readings, x, settings), hidden, settings["device"])
        history, used = train(made, settings["weights"], settings["lr"], progress_bar=settings["progress_bar"])
    model = Autoencoder(readings, made.encoders, made.decoders, system.latent, hidden)
    z = {m: model.embed(v, m) for m, v in x.items()}
    model.readings = {m: reading.learnt(found[m][1], z[m]) for m, reading in readings.items()}
    info = {"steps_used": used, "steps": history["step"][-1], "hidden": at_most(published, hidden)}
    info |= {f"read_{m}": len(reading.read) for m, reading in readings.items()}
    return Fitted(z, model, history, info)


def _linked(problem: Problem, name: str) -> np.ndarray:
    """Positions of a modality's linked features."""
    found = [known.positions(name) for pair, known in problem.known.items() if name in pair]
    return np.unique(np.concatenate(found)).astype(int)


def _task(
    problem: Problem, readings: Mapping[str, Reading], x: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> Task:
    device, seed = settings["device"], settings["random_state"]
    parts = split({m: len(v) for m, v in x.items()}, seed)
    return Task(
        problem=problem,
        readings=readings,
        x={m: torch.as_tensor(v, device=device) for m, v in x.items()},
        labels={m: torch.as_tensor(codes, device=device) for m, codes in (problem.labels or {}).items()},
        rows={m: torch.as_tensor(of.train, device=device) for m, of in parts.items()},
        held_out={m: torch.as_tensor(of.validation, device=device) for m, of in parts.items()},
        batch_size=settings["batch_size"],
        max_steps=settings["max_steps"],
        geometry=settings["geometry"],
        random_state=seed,
        weights=settings["weights"],
        options=settings["options"] or {},
    )
