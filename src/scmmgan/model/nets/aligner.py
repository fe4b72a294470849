"""The scMMGAN aligner: fit, translate, embed, state. Arrays in, arrays out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from os import PathLike
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from scmmgan.model.coupling.couple import Loadings
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.coupling.landmarks import Landmarks
from scmmgan.model.defaults import (
    COORDINATE_SD,
    MAP_CHUNK,
    MAX_TESTED_CELLS,
    MAX_VALIDATION,
    REMEMBERED_CELLS,
    START_RIDGE,
    VALIDATION_SHARE,
)
from scmmgan.model.nets import training
from scmmgan.model.nets.embedding import round_trip_metrics
from scmmgan.model.nets.networks import (
    DISCRIMINATORS,
    GENERATORS,
    BarycentricMap,
    Features,
    Generator,
    NoisyGenerator,
)
from scmmgan.model.nets.pinned import pinned
from scmmgan.model.nets.processes import ALONE, Processes
from scmmgan.model.problem import Pair, Sections
from scmmgan.model.space.linear import ridge


@dataclass(frozen=True)
class Frame:
    """Coordinates in the units of the tissue ⇄ standardised: a centre and one scale, so that the axes keep their proportions.

    Of several `sections` (names) each has axes and a centre of its own, one after the other: nothing is averaged between.
    """

    centre: list[float]
    scale: float
    sections: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, coordinates: np.ndarray, sections: Sections | None = None) -> Frame:
        """The frame in which coordinates (n × d) have mean 0 and, over all axes of a section, an sd of `COORDINATE_SD`."""
        codes = np.zeros(len(coordinates), dtype=int) if sections is None else sections.codes
        centres = np.stack([coordinates[codes == code].mean(0) for code in range(codes.max() + 1)])
        sd = float(np.sqrt(((coordinates - centres[codes]) ** 2).mean()))
        # all sections together vary as much as one would
        scale = (sd or 1.0) / COORDINATE_SD * np.sqrt(len(centres))
        return cls(centres.ravel().tolist(), float(scale), [] if sections is None else list(sections.names))

    def encode(self, coordinates: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Standardised coordinates (n × sections · d), 0 but for a cell's own section, whose axes `own` marks."""
        repeated = np.tile(coordinates, max(len(self.sections), 1))
        found = (repeated - np.asarray(self.centre)) / self.scale
        return found if own is None else np.where(own, found, 0)

    def decode(self, standardised: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """Coordinates (n × d) in the units of the tissue, in the section that `codes` says."""
        n, count = len(standardised), max(len(self.sections), 1)
        own = np.zeros(n, dtype=int) if codes is None else codes
        found = standardised.astype(np.float64).reshape(n, count, -1)[np.arange(n), own]
        return found * self.scale + np.asarray(self.centre).reshape(count, -1)[own]


class Aligner:
    """One generator for every ordered pair of modalities, between model spaces of the given widths.

    `networks` is `"default"`, `"paper"`, or `"coupling"`: the barycentric map of the coupling, which is not trained.
    `noise`: width of the noise that generators take beside the cells of a modality; none by default. `centre`: of a star,
    whose other modalities have generators to and from it only, and are mapped through it.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        networks: str = "default",
        noise: Mapping[str, int] | None = None,
        frames: Mapping[str, Frame] | None = None,
        centre: str | None = None,
    ) -> None:
        self.widths = dict(widths)
        self.networks = networks
        self.frames = dict(frames or {})
        self.metric: dict[str, np.ndarray] = {}  # by modality: none where no coupling makes round trips
        self.block_sd = dict.fromkeys(widths, 1.0)
        self.noise = {m: width for m, width in (noise or {}).items() if width}
        self.centre = centre
        self.generators = {
            (a, b): self._generator(a, b) for a, b in permutations(widths, 2) if self.through(a, b) is None
        }

    def through(self, source: str, target: str) -> str | None:
        """The modality through which one is mapped to another, None where a generator leads there."""
        return None if self.centre in (None, source, target) else self.centre

    def generator(self, source: str, target: str) -> torch.nn.Module:
        """The network from one modality to another, or the two that lead there."""
        if (via := self.through(source, target)) is None:
            return self.generators[source, target]
        first, second = self.generators[source, via], self.generators[via, target]
        return torch.nn.Sequential(first, Features(self.widths[via]), second)

    def _generator(self, a: str, b: str) -> torch.nn.Module:
        width = self.noise.get(a, 0)
        found = GENERATORS[self.networks](self.widths[a] + width, self._full(b))
        return NoisyGenerator(found, width) if width else found

    def _full(self, modality: str) -> int:
        """Width of a modality's features and coordinates."""
        return self.widths[modality] + (len(self.frames[modality].centre) if modality in self.frames else 0)

    @property
    def modalities(self) -> list[str]:
        """Names in the order of the embedding's blocks."""
        return list(self.widths)

    @classmethod
    @pinned()
    def fit(
        cls,
        x: Mapping[str, np.ndarray],
        couplings: Mapping[Pair, Coupling],
        loadings: Mapping[Pair, Loadings],
        *,
        shared: Collection[Pair],
        weights: Mapping[str, float],
        recipe: training.Recipe,
        random_state: int,
        device: str,
        progress_bar: bool,
        networks: str = "default",
        coupled: bool = True,
        noise: Mapping[str, int] | None = None,
        coordinates: Mapping[str, np.ndarray] | None = None,
        sections: Mapping[str, Sections] | None = None,
        centre: str | None = None,
        init: Aligner | None = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        processes: Processes = ALONE,
    ) -> tuple[Aligner, dict[str, list[float]]]:
        """Train on model-space cells (n × p per modality); returns the aligner, on CPU, and the history.

        Without `coupled` only known pairs are followed, and the start is random (the identity between `shared` pairs, in one space).
        Generators that enter a modality with `coordinates` (n × d) emit these, too, for each of its `sections`; those that
        leave it do not see them. `init`: whose networks are trained on; they are of the same cells' space.
        """
        if centre is not None:
            couplings = {pair: c for pair, c in couplings.items() if centre in pair}
        frames = {m: Frame.of(v, (sections or {}).get(m)) for m, v in (coordinates or {}).items()}
        if init is not None and set(init.frames) == set(frames):
            # outputs of the networks are in the units of then
            frames = init.frames
        own = {m: _own(frame, len(x[m]), (sections or {}).get(m)) for m, frame in frames.items()}
        landmarks = {b: c.landmarks for (_, b), c in couplings.items()}
        places = {
            m: _in_all_sections(frames[m].encode(v, own[m]), own[m], landmarks[m])
            for m, v in (coordinates or {}).items()
        }
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators, too, and they are not restored
            torch.default_generator.manual_seed(random_state)
            aligner = cls({m: v.shape[1] for m, v in x.items()}, networks, noise, frames, centre)
            discriminators = {
                m: DISCRIMINATORS[networks](aligner._full(m)) for m in aligner.widths if networks in DISCRIMINATORS
            }
        if coupled:
            aligner.metric = round_trip_metrics(x, couplings)
        # both blocks of two modalities rest on one coupling; of more, some on a better one than others
        measured = {m: v if len(x) > 2 else aligner._in_metric(v, m) for m, v in x.items()}
        aligner.block_sd = {m: float(v.std(dtype=np.float64)) for m, v in measured.items()}
        placed = {(a, b): _placed(c, x[b], places[b], own[b]) if b in places else c for (a, b), c in couplings.items()}
        aligner._start(x, placed, shared=shared, coupled=coupled, random_state=random_state)
        if init is not None:
            aligner._go_on(init)
        if networks not in DISCRIMINATORS:
            return aligner, aligner._errors(x, couplings, random_state)
        full = {m: np.hstack([v, places[m]]) if m in places else v for m, v in x.items()}
        problem = replace(
            _training_data(full, placed, loadings, weights, coupled, random_state, processes.device(device)),
            shared=tuple(shared),
            widths={m: aligner.widths[m] for m in places},
        )
        how = (recipe, random_state, device, progress_bar, checkpoint_dir, processes)
        return aligner, aligner._train(discriminators, problem, *how)

    def _train(
        self,
        discriminators: Mapping[str, torch.nn.Module],
        data: training.TrainingData,
        recipe: training.Recipe,
        random_state: int,
        device: str,
        progress_bar: bool,
        checkpoint_dir: str | PathLike[str] | None,
        processes: Processes,
    ) -> dict[str, list[float]]:
        """Train on the device and come back to the CPU; returns the history."""
        own = processes.device(device)
        for net in (*self.generators.values(), *discriminators.values()):
            net.to(own)
        history = training.fit(
            dict(self.generators),
            dict(discriminators),
            data,
            recipe,
            random_state=random_state,
            device=own,
            progress_bar=progress_bar,
            checkpoint_dir=checkpoint_dir,
            processes=processes,
        )
        for generator in self.generators.values():
            generator.to("cpu").eval()
        return history

    def _start(
        self,
        x: Mapping[str, np.ndarray],
        couplings: Mapping[Pair, Coupling],
        *,
        shared: Collection[Pair],
        coupled: bool,
        random_state: int,
    ) -> None:
        """Set the linear skips, from cells that train, or the cells that the coupling's own map remembers."""
        train = {m: of.train for m, of in split({m: len(v) for m, v in x.items()}, random_state).items()}
        for i, ((a, b), generator) in enumerate(self.generators.items()):
            if isinstance(generator, NoisyGenerator):
                generator.rng.manual_seed(random_state + 1 + i)
                generator = generator.inner
            width = self.noise.get(a, 0)
            if isinstance(generator, BarycentricMap):
                found = couplings[a, b]
                generator.start_from(*(_float(v) for v in _line(x[a], found, slice(None))))
                rows = np.random.default_rng(random_state).permutation(len(x[a]))[:REMEMBERED_CELLS]
                share = found.weight if found.weight.any() else np.ones(len(x[a]))
                generator.remember(*(_float(v[np.sort(rows)]) for v in (x[a], found.anchors, share)))
            elif isinstance(generator, Generator) and (a, b) in shared:
                start, middle = torch.zeros(self._full(b), self.widths[a] + width), torch.zeros(self._full(b))
                start[: self.widths[b], : self.widths[a]] = torch.eye(self.widths[b], self.widths[a])
                if b in self.frames:
                    # the places of measured cells say where their like are
                    slope, where = (_float(v)[self.widths[b] :] for v in _line(x[a], couplings[a, b], train[a]))
                    start[self.widths[b] :, : self.widths[a]], middle[self.widths[b] :] = slope, where
                generator.start_from(start, middle)
            elif isinstance(generator, Generator) and coupled:
                weight, bias = _line(x[a], couplings[a, b], train[a])
                generator.start_from(_float(np.pad(weight, ((0, 0), (0, width)))), _float(bias))

    def _go_on(self, before: Aligner) -> None:
        """Take the weights of networks that were trained before; ValueError where they are of another kind."""
        for name in ("widths", "networks", "noise", "centre", "frames"):
            if getattr(self, name) != getattr(before, name):
                said = {"widths": "model space", "networks": "`method`", "noise": "`noise_dim`", "centre": "`maps`"}
                raise ValueError(
                    f"`init` was trained with another {said.get(name, '`spatial`')} ({getattr(before, name)!r}; now "
                    f"{getattr(self, name)!r}). Give the same, or leave `init` out."
                )
        for pair, generator in self.generators.items():
            generator.load_state_dict(before.generators[pair].state_dict())

    def _errors(
        self, x: Mapping[str, np.ndarray], couplings: Mapping[Pair, Coupling], random_state: int
    ) -> dict[str, list[float]]:
        """A history of one row for what was not trained: errors of some cells at the anchors and of the way there and back."""
        cycle = anchors = 0.0
        for (a, b), coupling in couplings.items():
            rows = np.sort(np.random.default_rng(random_state).permutation(len(x[a]))[:MAX_TESTED_CELLS])
            cells = x[a][rows]
            there = self.translate(cells, a, b)
            cycle += float(((self.translate(there, b, a) - cells) ** 2).mean())
            anchors += float(((there - coupling.anchors[rows]) ** 2).mean())
        scale = len(self.widths) - 1
        return {"step": [0], "cycle": [cycle / scale], "anchors": [anchors / scale]}

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        """Map cells (n × p, model space of `source`) into the model space of `target`; each on its own."""
        if source == target:
            return np.asarray(x, dtype=np.float32)
        x, source = self._towards(x, source, target)
        return self._map(x, source, target)[:, : self.widths[target]]

    def _towards(self, x: np.ndarray, source: str, target: str) -> tuple[np.ndarray, str]:
        """Cells where a generator into the target's space begins, and of which modality they then are."""
        via = self.through(source, target)
        return (x, source) if via is None else (self.translate(x, source, via), via)

    def place(self, x: np.ndarray, source: str, target: str, codes: np.ndarray | None = None) -> np.ndarray:
        """Coordinates (n × d, float64, the target's units) of cells (n × p, model space of `source`).

        `codes`: number (n,) of the section, of `frames[target].sections`, where there are several.
        """
        x, source = self._towards(x, source, target)
        return self.frames[target].decode(self._map(x, source, target)[:, self.widths[target] :], codes)

    @pinned()
    @torch.inference_mode()
    def _map(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        generator = self.generators[source, target].eval()
        starts = range(0, max(len(x), 1), MAP_CHUNK)
        return np.concatenate([generator(_float(x[i : i + MAP_CHUNK])).numpy() for i in starts])

    @pinned()
    @torch.inference_mode()
    def sample(self, x: np.ndarray, source: str, target: str, rng: np.random.Generator) -> np.ndarray:
        """Map cells like `translate`, with noise drawn for every one; only where generators take noise."""
        if (via := self.through(source, target)) is not None:
            x, source = self.sample(x, source, via, rng), via
        generator = self.generators[source, target].eval()
        if not isinstance(generator, NoisyGenerator):
            raise ValueError(f"The generator from {source!r} to {target!r} was trained without noise.")
        found = []
        for start in range(0, max(len(x), 1), MAP_CHUNK):
            part = x[start : start + MAP_CHUNK]
            z = rng.standard_normal((len(part), generator.width), dtype=np.float32)
            found.append(generator.sample(_float(part), _float(z)).numpy()[:, : self.widths[target]])
        return np.concatenate(found)

    def embed(self, x: np.ndarray, modality: str, images: Mapping[Pair, np.ndarray] | None = None) -> np.ndarray:
        """Joint embedding (n × sum of widths): blocks of all modality spaces, each over the sd of its measured cells.

        Axes of a space count by their round-trip reliability, for measured and mapped cells alike; of three modalities or
        more that sd is without it, so that blocks count by theirs. `images`: `translate` of these cells, if it is at hand.
        """
        images = images or {}
        blocks = {
            m: images[modality, m] if (modality, m) in images else self.translate(x, modality, m)
            for m in self.modalities
        }
        return np.hstack([self._in_metric(v, m) / np.float32(self.block_sd[m]) for m, v in blocks.items()])

    def _in_metric(self, x: np.ndarray, modality: str) -> np.ndarray:
        if modality not in self.metric:
            return x
        return (x.astype(np.float64) @ self.metric[modality]).astype(np.float32)

    def state(self) -> tuple[str, dict[str, np.ndarray]]:
        """JSON text and plain arrays from which `from_state` rebuilds the aligner."""
        config = {"modalities": self.modalities, "widths": self.widths, "block_sd": self.block_sd}
        config["networks"] = self.networks
        if self.centre is not None:
            config["centre"] = self.centre
        if self.noise:
            config["noise"] = self.noise
        if self.frames:
            config["frames"] = {m: asdict(frame) for m, frame in self.frames.items()}
        weights = {
            f"{i}:{name}": value.detach().numpy().copy()
            for i, generator in enumerate(self.generators.values())
            for name, value in generator.state_dict().items()
        }
        weights |= {f"metric:{i}": self.metric[m].copy() for i, m in enumerate(self.widths) if m in self.metric}
        return json.dumps(config), weights

    @classmethod
    @pinned()
    def from_state(cls, config: str, weights: Mapping[str, Any]) -> Aligner:
        """Rebuild an aligner from what `state` gave."""
        found = json.loads(config)
        # without memory, so that widths are compared with the weights that are there before any is taken
        with torch.device("meta"):
            widths = {m: found["widths"][m] for m in found["modalities"]}
            frames = {m: Frame(**frame) for m, frame in found.get("frames", {}).items()}
            aligner = cls(widths, found["networks"], found.get("noise"), frames, found.get("centre"))
        aligner.block_sd = dict(found["block_sd"])
        stored = {m: weights.get(f"metric:{i}") for i, m in enumerate(widths)}
        aligner.metric = {m: np.asarray(v) for m, v in stored.items() if v is not None}
        for i, generator in enumerate(aligner.generators.values()):
            prefix = f"{i}:"
            state = {
                k.removeprefix(prefix): torch.as_tensor(np.array(v)) for k, v in weights.items() if k.startswith(prefix)
            }
            _check_shapes(generator, state)
            if isinstance(generator, BarycentricMap):
                # as many cells as there were
                for name in ("cells", "offsets", "share"):
                    generator.register_buffer(name, state[name])
            generator.load_state_dict(state, assign=True)
            generator.eval()
        return aligner


def _check_shapes(generator: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """ValueError unless the weights are those of the generator, of its shapes, and finite."""
    expected = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if isinstance(generator, BarycentricMap):
        # as many cells as there were
        n = len(state["cells"]) if "cells" in state else 0
        expected |= {name: (n, *expected[name][1:]) for name in ("cells", "offsets", "share")}
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        raise ValueError(f"weights {wrong[:3]} do not have the shapes that belong to their widths")
    if bad := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"weights {bad[:3]} are not finite")


def _float(v: np.ndarray) -> torch.Tensor:
    # a copy: torch warns of arrays that it could not write to; in rows, as the order of a product decides its last bit
    return torch.from_numpy(np.array(v, dtype=np.float32, order="C"))


def _line(x: np.ndarray, coupling: Coupling, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
    """Linear map (weight p' × p, bias) from some cells to their anchors, slightly shrunk."""
    return ridge(x[rows], coupling.anchors[rows], coupling.weight[rows], penalty=START_RIDGE)


def _own(frame: Frame, n: int, sections: Sections | None) -> np.ndarray:
    """Which of a frame's axes are those of each cell's own section, (n × sections · d) bool."""
    if sections is None:
        return np.ones((n, len(frame.centre)), dtype=bool)
    count = len(sections.names)
    return np.repeat(np.arange(count) == sections.codes[:, None], len(frame.centre) // count, axis=1)


def _in_all_sections(places: np.ndarray, own: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """Places of measured cells; in other sections than their own, the mean of the cells of their landmark there."""
    if own.all():
        return places
    means = _over(landmarks.mean(places), landmarks.mean(own))
    return np.where(own, places, means[landmarks.label])


def _over(total: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Means in each section; its centre where nothing is of it."""
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def _placed(coupling: Coupling, x: np.ndarray, places: np.ndarray, own: np.ndarray) -> Coupling:
    """Anchors with coordinates: the plan's mean inside each section, or where the known partner is, found by its features.

    The plain mean, not the sharper one of the features: what counts for places is how far off they are.
    """
    means = np.asarray(coupling.plan @ coupling.landmarks.mean(np.where(own, places, 0)))
    if not own.all():
        means = _over(means, np.asarray(coupling.plan @ coupling.landmarks.mean(own)))
    if coupling.known.any():
        means[coupling.known] = places[cKDTree(x).query(coupling.anchors[coupling.known])[1]]
    return replace(coupling, anchors=np.hstack([coupling.anchors, means]))


@dataclass(frozen=True)
class Split:
    """Row numbers of one modality: to train on, to choose the best weights on, and to score the map on afterwards."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(sizes: Mapping[str, int], random_state: int) -> dict[str, Split]:
    """A tenth of the cells, at most 500, takes no part in the training: one half chooses the weights, the other scores.

    Below 100 cells all train, too.
    """
    rng = np.random.default_rng(random_state)
    parts = {}
    for m, size in sizes.items():
        order, n = rng.permutation(size), min(MAX_VALIDATION, -(-size // VALIDATION_SHARE))
        half = -(-n // 2)
        rows = (order[n:] if size >= 100 else order, order[:half], order[half:n])
        parts[m] = Split(*(np.sort(of) for of in rows))
    return parts


def _training_data(
    x: Mapping[str, np.ndarray],
    couplings: Mapping[Pair, Coupling],
    loadings: Mapping[Pair, Loadings],
    weights: Mapping[str, float],
    coupled: bool,
    random_state: int,
    device: torch.device,
) -> training.TrainingData:
    """What is trained on, as tensors on the device."""

    def tensor(v: np.ndarray) -> torch.Tensor:
        return _float(v).to(device)

    parts = split({m: len(v) for m, v in x.items()}, random_state)
    rows = {m: torch.as_tensor(of.train, device=device) for m, of in parts.items()}
    held_out = {m: torch.as_tensor(of.validation, device=device) for m, of in parts.items()}
    if not coupled:
        couplings = {pair: replace(c, weight=c.weight * c.known) for pair, c in couplings.items() if c.known.any()}
    return training.TrainingData(
        x={m: tensor(v) for m, v in x.items()},
        anchors={pair: tensor(c.anchors) for pair, c in couplings.items()},
        anchor_weight={pair: tensor(c.weight) for pair, c in couplings.items()},
        links={pair: training.LinkLoadings(*(tensor(v) for v in arrays)) for pair, arrays in loadings.items()},
        rows=rows,
        held_out=held_out,
        weights=dict(weights),
    )
