"""A trained model as one object: networks, transforms, and the training cells that new cells are smoothed with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scmmgan.model.nets import methods
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.latent import Mapper
from scmmgan.model.problem import Values
from scmmgan.model.space.imputation import Imputation
from scmmgan.model.space.reference import Located, Reference, located
from scmmgan.model.space.transform import Transform


@dataclass(frozen=True)
class Input:
    """What a modality was read from: a layer (None: X) or an obsm key, a layer of counts, and batches: obs column and names.

    `covariates`: whether their effect was taken out.
    """

    layer: str | None = None
    use_rep: str | None = None
    counts: str | None = None
    covariates: bool = False
    batch: str | None = None
    batches: Sequence[str] = ()


@dataclass(frozen=True)
class Trained:
    """Everything that maps cells, by modality: arrays, names and networks.

    `features`: names, in the order of the transforms. `references`: training cells of each batch. `diagnosis`: records of
    pairs of modalities. `imputations`: by source and target, of features that only the target has.
    """

    aligner: Aligner
    transforms: Mapping[str, Transform]
    references: Mapping[str, Sequence[Reference]]
    features: Mapping[str, np.ndarray]
    inputs: Mapping[str, Input]
    diagnosis: Mapping[str, Mapping[str, Mapping[str, Any]]]
    imputations: Mapping[str, Mapping[str, Imputation]] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Names in the order of the embedding's blocks."""
        return self.aligner.modalities

    def locate(
        self, values: Values, columns: np.ndarray, modality: str, batch: np.ndarray, *, batch_size: int
    ) -> Located:
        """New cells of a modality in its model space, from their values (n × g') of the features at `columns`.

        `batch` (n,): codes of the batches that were trained on, -1: unknown.
        """
        return located(self.references[modality], values, columns, batch, batch_size=batch_size)

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        """Map cells (n × p, model space of `source`) into the model space of `target`; each on its own."""
        return self.aligner.translate(x, source, target)

    def embed(self, x: np.ndarray, modality: str) -> np.ndarray:
        """Joint embedding (n × sum of widths) of cells in the model space of a modality."""
        return self.aligner.embed(x, modality)

    def imputation(self, source: str, target: str) -> Imputation | None:
        """What predicts features that only the target has from counts of the source."""
        return self.imputations.get(source, {}).get(target)

    def decode(
        self,
        y: np.ndarray,
        target: str,
        features: np.ndarray | None = None,
        imputed: tuple[Imputation, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Values (n × g) of all features, or of chosen positions, of cells in the model space of `target`.

        `imputed`: what predicts features that only the target has, and the scores of the cells that it reads.
        """
        if imputed is None:
            return self.transforms[target].inverse(y, features)
        at = np.arange(len(self.features[target])) if features is None else features
        return imputed[0].decoded(self.transforms[target], y, imputed[1], at)

    def needed(self, modality: str) -> np.ndarray:
        """Positions of the features that new cells of a modality are located by."""
        return np.unique(np.concatenate([of.features for r in self.references[modality] for of in (r.own, r.search)]))

    def weights(self, modality: str) -> np.ndarray:
        """Share (g,) of the variance of a modality's model space that each feature carries."""
        found, reference = np.zeros(len(self.features[modality])), self.references[modality][0]
        found[reference.own.features] = reference.variance @ reference.own.loadings**2
        return found / max(found.sum(), 1e-300)

    def scale(self, values: Values, columns: np.ndarray, modality: str) -> float:
        """How many times the mean values (n × g', of the features at `columns`) of training cells those of new cells are.

        NaN where training values are about zero on average, so that no factor says anything.
        """
        own = [of.own for of in self.references[modality]]
        _, at, there = np.intersect1d(own[0].features, columns, return_indices=True)
        center = np.mean([of.center for of in own], axis=0)[at]
        mean = np.asarray(values.mean(0)).ravel()[there]
        known = (center**2).sum() > (own[0].sd[at] ** 2).sum()
        return float(mean @ center / (center @ center)) if known else np.nan

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trained:
        """The model of a record that is whole; ValueError, KeyError or TypeError where its parts do not fit each other."""
        model = record["model"]
        config = json.loads(str(model["config"]))
        aligner = Aligner.from_state(str(model["config"]), model["weights"])
        features = {m: np.array(config["var_names"][m], dtype=object) for m in aligner.modalities}
        inputs = {m: Input(**config["inputs"][m]) for m in aligner.modalities}
        transforms = {m: Transform.from_state(model["transforms"][m]) for m in aligner.modalities}
        references = {
            m: [Reference.from_state(model["reference"][m][str(i)]) for i in range(max(len(inputs[m].batches), 1))]
            for m in aligner.modalities
        }
        for m, width in aligner.widths.items():
            if transforms[m].decoder.shape != (width, len(features[m])):
                raise ValueError(f"the decoder of {m!r} has shape {transforms[m].decoder.shape}")
            if any(len(of.own.loadings) != width for of in references[m]):
                raise ValueError(f"the training cells of {m!r} are in another space")
        imputations = {
            a: {t: Imputation.from_state(state) for t, state in of.items()}
            for a, of in model.get("imputations", {}).items()
        }
        return cls(aligner, transforms, references, features, inputs, record["diagnosis"], imputations)


@dataclass(frozen=True)
class TrainedLatent:
    """The same of a method without a coupling: what maps cells by way of one space of all modalities.

    Nothing is smoothed, so that no training cells are kept.
    """

    mapper: Mapper
    features: Mapping[str, np.ndarray]
    inputs: Mapping[str, Input]
    diagnosis: Mapping[str, Mapping[str, Mapping[str, Any]]]
    method: str
    imputations: Mapping[str, Mapping[str, Imputation]] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Names in order."""
        return list(self.features)

    @property
    def aligner(self) -> Aligner:
        """None: ValueError."""
        raise ValueError(f"method {self.method!r} has no coupling and no networks from one model space to another.")

    def locate(
        self, values: Values, columns: np.ndarray, modality: str, batch: np.ndarray, *, batch_size: int
    ) -> Located:
        """New cells as the method reads them, from their values (n × g') of the features at `columns`."""
        if len(self.inputs[modality].batches):
            raise ValueError(
                f"method {self.method!r} keeps nothing of the batches that {modality!r} was aligned in: new cells cannot be moved as "
                "those were. Align without `batch`."
            )
        return Located(self.mapper.read(values, columns, modality), {}, np.empty(0, np.float32))

    def translate(self, x: np.ndarray, source: str, target: str) -> np.ndarray:
        """Cells as the method reads them (n × p) in the space of all modalities (n × q)."""
        return self.mapper.embed(x, source)

    def embed(self, x: np.ndarray, modality: str) -> np.ndarray:
        """The same: the joint embedding."""
        return self.mapper.embed(x, modality)

    def imputation(self, source: str, target: str) -> Imputation | None:
        """Nothing is predicted from counts."""
        return None

    def decode(
        self,
        y: np.ndarray,
        target: str,
        features: np.ndarray | None = None,
        imputed: tuple[Imputation, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Values (n × g) of all features of `target`, or of chosen positions, of cells in the joint space."""
        at = np.arange(len(self.features[target])) if features is None else features
        return self.mapper.decode(y, target, at)

    def needed(self, modality: str) -> np.ndarray:
        """Positions of the features that new cells of a modality are read by."""
        return self.mapper.needed(modality)

    def weights(self, modality: str) -> np.ndarray:
        """Share (g,) of what is read that each feature carries."""
        return self.mapper.shares(modality)

    def scale(self, values: Values, columns: np.ndarray, modality: str) -> float:
        """Nothing is kept that new cells could be compared with: NaN."""
        return np.nan


def rebuilt(record: Mapping[str, Any]) -> Trained | TrainedLatent:
    """The model of a record that is whole, with or without a coupling; errors as of `Trained.from_record`."""
    config = json.loads(str(record["model"]["config"]))
    if "method" not in config:
        return Trained.from_record(record)
    method = str(config["method"])
    features = {str(m): np.array(config["var_names"][m], dtype=object) for m in config["modalities"]}
    inputs = {m: Input(**config["inputs"][m]) for m in features}
    mapper = methods.rebuilt(method, config, record["model"]["weights"])
    return TrainedLatent(mapper, features, inputs, record["diagnosis"], method)
