"""Methods by name: what fits them, with which settings, and which arguments they cannot use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np

from scmmgan.model.coupling.couple import Domains, Loadings
from scmmgan.model.coupling.coupling import Coupling
from scmmgan.model.defaults import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MAX_STEPS, MIN_LINKS, N_PCS
from scmmgan.model.nets import autoencoder, baselines, links_matching, scmodal_cca
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.autoencoder import Autoencoder, System
from scmmgan.model.nets.cmae import CMAE
from scmmgan.model.nets.con_aae import ConAAE
from scmmgan.model.nets.jamie import JAMIE
from scmmgan.model.nets.latent import Fitted, Mapper
from scmmgan.model.nets.losses import GEOMETRIES
from scmmgan.model.nets.processes import ALONE, Processes
from scmmgan.model.nets.scmodal import ScMODAL
from scmmgan.model.nets.training import Recipe
from scmmgan.model.problem import Pair, Problem, Sections


@dataclass(frozen=True)
class Method:
    """Defaults of what users may change, and `settings` of the aligner that belong to the method.

    A method without a coupling has a function `fit` of its own, from the problem and the settings, and `rebuild`, from a
    stored config and arrays to what maps cells. Of `OPTIONAL` arguments it can use those in `takes` (`pair_weights`: several
    partners of a cell); it maps between at most `most` modalities, and compares geometries by one of `geometries`. `options`
    that it alone has: True, False or a number from 0 to 1 by default.
    """

    weights: dict[str, float] = field(default_factory=lambda: dict(LOSS_WEIGHTS))
    max_steps: int = MAX_STEPS
    batch_size: int = BATCH_SIZE
    lr: float = LEARNING_RATE
    geometry: str | None = "heat"
    betas: tuple[float, float] = (0.5, 0.99)
    plain: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    fit: Callable[[Problem, Mapping[str, Any]], Fitted] | None = None
    rebuild: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], Mapper] | None = None
    takes: Collection[str] = ("links", "pairs", "labels")
    most: int | None = None
    geometries: Collection[str] = tuple(GEOMETRIES)
    options: dict[str, bool | float] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether anything is trained, so that the arguments `TRAINING` say how."""
        return bool(self.weights) and self.settings.get("networks") != "coupling"


# arguments that say how is trained, with what leaves them to the method
TRAINING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("max_steps", "batch_size", "lr", "weights"), (None,)), "geometry": ("auto", None),
    "cycle_as_real": (False,), "precision": ("float32",),
}  # fmt: skip


def of_system(system: type[System]) -> Method:
    """The method that fits a system of autoencoders."""
    own = {
        f: getattr(system, f)
        for f in ("max_steps", "batch_size", "lr", "geometry", "geometries", "takes", "most", "options")
    }
    rebuild = partial(Autoencoder.from_state, system)
    return Method(weights=dict(system.weights), fit=partial(autoencoder.fit, system), rebuild=rebuild, **own)


def _baseline(name: str) -> Method:
    """A method without networks and weights."""
    of = baselines.BASELINES[name]
    takes = (*of.needs, *(("counts",) if name == "depth" else ()))
    return Method(weights={}, geometry=None, geometries=(), fit=partial(baselines.fit, name), takes=takes, most=of.most)


METHODS = {
    "scmmgan": Method(),
    "coupling": Method(settings={"networks": "coupling"}),
    "scmmgan-paper": Method(
        # as published
        weights={
            "adversarial": 1.0,
            "cycle": 1.0,
            "anchors": 10.0,
            "links": 10.0,
            "geometry": 1.0,
            "identity": 0.0,
            "consistency": 0.0,
        },
        max_steps=20_000,
        batch_size=256,
        lr=1e-4,
        geometry="eigvec",
        betas=(0.9, 0.999),
        plain=True,
        settings={"networks": "paper", "coupled": False},
    ),
    "cyclegan": Method(
        weights={**LOSS_WEIGHTS, "adversarial": 1.0, "anchors": 0.0, "links": 0.0, "identity": 0.0},
        # without anchors it takes longer (measured)
        max_steps=1_000,
        lr=1e-3,
        geometry=None,
        settings={"coupled": False},
    ),
    "cmae": of_system(CMAE),
    "con-aae": of_system(ConAAE),
    "scmodal": of_system(ScMODAL),
    "jamie": of_system(JAMIE),
    # scMODAL's networks
    "scmodal-cca": replace(of_system(ScMODAL), fit=scmodal_cca.fit, takes=("links", "pairs", "hidden"), most=2),
    "links-matching": Method(
        weights={},
        geometry=None,
        geometries=(),
        fit=links_matching.fit,
        takes=("links", "labels"),
        most=2,
        options={"weak_links": False},
    ),
    **{name: _baseline(name) for name in baselines.BASELINES},
}


def lookup(method: str) -> Method:
    """The method of that name, or a ValueError that lists all."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.{_hint(method, METHODS)}")
    return METHODS[method]


def check_geometry(geometry: str | None, geometries: Collection[str] = tuple(GEOMETRIES)) -> str | None:
    """A known geometry or None, or a ValueError that lists all."""
    if geometry is not None and (not isinstance(geometry, str) or geometry not in geometries):
        known = [*geometries, None]
        raise ValueError(f"`geometry` must be one of {known}, got {geometry!r}.{_hint(geometry, geometries)}")
    return geometry


def check_precision(precision: str, device: str) -> str:
    """A precision of products that the device has, or a ValueError."""
    devices = {"float32": None, "tf32": ("cuda",), "bf16": ("cuda", "cpu")}
    if not isinstance(precision, str) or precision not in devices:
        raise ValueError(f"`precision` must be one of {list(devices)}, got {precision!r}.")
    having = devices[precision]
    if having is not None and not device.startswith(having):
        raise ValueError(
            f"`precision={precision!r}` needs one of the devices {list(having)}, and this is {device!r}. Leave it out."
        )
    return precision


def check_options(method: str, given: Mapping[str, Any] | None) -> dict[str, bool | float]:
    """All options of a method, those given among them; KeyError on others, TypeError and ValueError on values that they cannot have."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"`options` must be a dict from option to value, got {given!r}.")
    own = lookup(method).options
    if given and not own:
        having = {name: list(of.options) for name, of in METHODS.items() if of.options}
        raise ValueError(f"`method={method!r}` cannot use `options`: leave it out. Methods that have some: {having}.")
    if unknown := [str(name) for name in given or {} if name not in own]:
        raise KeyError(f"`method={method!r}` has no option {unknown[0]!r}.{_hint(unknown[0], own)} Known: {list(own)}.")
    found = {**own, **(given or {})}
    for name, value in found.items():
        if isinstance(own[name], bool):
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"The option {name!r} must be True or False, got {value!r}.")
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"The option {name!r} must be a number from 0 to 1, got {value!r}.")
        elif not 0 <= float(value) <= 1:
            raise ValueError(f"The option {name!r} must be a number from 0 to 1, got {value!r}.")
    return {name: bool(v) if isinstance(own[name], bool) else float(v) for name, v in found.items()}


# arguments that only some methods use, with what leaves them out; methods without a coupling use none of the others
OPTIONAL: dict[str, tuple[Any, ...]] = {
    "links": (None, "auto"), "pairs": (None,), "labels": (None,), "hidden": (None,), "smooth": (None, "auto", 0),
    "n_pcs": (None, N_PCS), "counts": (None, "auto"), "noise_dim": (0,), "cycle_as_real": (False,), "spatial": (None,),
    "library_key": (None,), "checkpoint_dir": (None,), "maps": ("all",), "devices": (1,), "precision": ("float32",),
}  # fmt: skip


def check_arguments(method: str, arguments: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Any]:
    """Arguments as the method reads them: those that it cannot use are left out; ValueError where they were given."""
    found = lookup(method)
    if found.most is not None and len(modalities) > found.most:
        raise ValueError(
            f"`method={method!r}` maps between {found.most} modalities, got {list(modalities)}. Name {found.most} of them, or "
            f"use a method for several: {[name for name, of in METHODS.items() if of.most is None]}."
        )
    unused = {"hidden"} if found.fit is None else set(OPTIONAL)
    left = {}
    for name in sorted(unused - set(found.takes)):
        without = OPTIONAL[name]
        value = arguments.get(name, without[0])
        given = list(value.values()) if isinstance(value, Mapping) else [value]
        # a table is no value of any default
        if any(not isinstance(of, str | int | None) or of not in without for of in given):
            raise ValueError(
                f"`method={method!r}` cannot use `{name}`: leave it out. Methods that use it: "
                f"{[other for other in METHODS if can_use(other, name)]}."
            )
        left[name] = without[0]
    geometry, hidden = arguments.get("geometry"), arguments.get("hidden")
    if not found.geometries and geometry not in TRAINING["geometry"]:
        comparing = [name for name, of in METHODS.items() if of.trains and of.geometries]
        raise ValueError(
            f"`method={method!r}` compares no geometry, got `geometry={geometry!r}`: leave it out. Methods that compare one: "
            f"{comparing}."
        )
    if isinstance(hidden, str) and hidden != "published":
        raise TypeError(
            f"`hidden` must be a whole number, 'published' or None, got {hidden!r}.{_hint(hidden, ['published'])}"
        )
    if "weight" in getattr(arguments.get("pairs"), "columns", ()) and "pair_weights" not in found.takes:
        raise ValueError(
            f"The table `pairs` has a column 'weight', which `method={method!r}` cannot use: drop it, so that every cell has one "
            f"partner. Methods that use it: {[other for other, of in METHODS.items() if 'pair_weights' in of.takes]}."
        )
    return left


def _uses(method: Method, argument: str) -> bool:
    return argument in method.takes or (method.fit is None and argument != "hidden")


def rebuilt(method: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Mapper:
    """What maps cells with a stored model of a method without a coupling; ValueError where it keeps none."""
    rebuild = lookup(method).rebuild
    if rebuild is None:
        raise ValueError(f"method {method!r} keeps no model that maps cells")
    return rebuild(config, arrays)


def _hint(name: object, known: Collection[str]) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def can_use(method: str, argument: str) -> bool:
    """Whether a method can use that argument of `tl.align`."""
    found = lookup(method)
    if not found.trains and argument in {*TRAINING, "noise_dim", "checkpoint_dir", "devices"}:
        return False
    if argument in ("geometry", "options"):
        return bool(found.geometries if argument == "geometry" else found.options)
    return argument not in OPTIONAL or _uses(found, argument)


def usable(method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments, and of `options` those, that a method can use; KeyError on an option that no method has."""
    found = {name: value for name, value in arguments.items() if can_use(method, name)}
    if isinstance(options := arguments.get("options"), Mapping):
        known = {name for of in METHODS.values() for name in of.options}
        if unknown := [str(name) for name in options if name not in known]:
            raise KeyError(
                f"No method has the option {unknown[0]!r}.{_hint(unknown[0], known)} Known: {sorted(known)}."
            )
        found["options"] = {name: value for name, value in options.items() if name in lookup(method).options} or None
    return found


def compared(given: Mapping[str, Any], *, common_names: int) -> dict[str, dict[str, Any]]:
    """Methods and baselines, with arguments of their own, that are compared by default: those for which all is given.

    `common_names`: number of features of one name.
    """
    found: dict[str, dict[str, Any]] = {"scmmgan": {}, "coupling": {}}
    if given.get("links") is not None:
        # what shapes alone would have given
        found["gw"] = {"method": "coupling", "links": None, "pairs": None, "labels": None}
    there = {name for name in ("links", "pairs", "labels") if given.get(name) is not None}
    usable = [name for name, of in baselines.BASELINES.items() if set(of.needs) <= there]
    return found | {name: {} for name in usable if name != "moment-matching" or common_names >= MIN_LINKS}


# arguments of `tl.align` that the training takes
SETTINGS = (
    "method", "weights", "max_steps", "batch_size", "lr", "geometry", "cycle_as_real", "random_state", "device",
    "noise_dim", "progress_bar", "checkpoint_dir", "precision",
)  # fmt: skip
# those that methods without a coupling take
LATENT_SETTINGS = (
    "weights", "max_steps", "batch_size", "lr", "geometry", "hidden", "options", "random_state", "device", "progress_bar",
)  # fmt: skip


def fit_problem(
    problem: Problem,
    domains: Domains,
    couplings: Mapping[Pair, Coupling],
    loadings: Mapping[Pair, Loadings],
    settings: Mapping[str, Any],
) -> tuple[Aligner, dict[str, list[float]]]:
    """Fit the method that `settings` (of `fit`) name, coordinates that the problem maps along included."""
    coordinates = {name: m.coordinates for name, m in problem.modalities.items() if m.coordinates is not None}
    sections = {name: m.sections for name, m in problem.modalities.items() if m.sections is not None}
    x = {m: d.x for m, d in domains.items()}
    return fit(
        x=x, couplings=couplings, loadings=loadings, shared=problem.shared, coordinates=coordinates,
        sections=sections, **{"centre": problem.centre, **settings},
    )  # fmt: skip


def fit_latent(method: str, problem: Problem, settings: Mapping[str, Any]) -> Fitted:
    """Fit a method without a coupling; ValueError where it gives no embedding of all cells."""
    fit = lookup(method).fit
    if fit is None:
        raise ValueError(f"method {method!r} starts from a coupling: `fit_problem` fits it")
    fitted = fit(problem, settings)
    cells = {name: len(m) for name, m in problem.modalities.items()}
    shapes = {name: np.shape(fitted.embeddings.get(name, ())) for name in cells}
    widths = {shape[1:] for shape in shapes.values()}
    if any(shapes[name][:1] != (n,) for name, n in cells.items()) or len(widths) > 1:
        raise ValueError(
            f"method {method!r} gave embeddings of shapes {shapes}, of {cells} cells: one space is needed."
        )
    if bad := [name for name in cells if not np.isfinite(fitted.embeddings[name]).all()]:
        raise ValueError(f"method {method!r} gave NaN or infinite values in the embedding of {bad[0]!r}.")
    return fitted


def fit(
    method: str,
    x: Mapping[str, np.ndarray],
    couplings: Mapping[Pair, Coupling],
    loadings: Mapping[Pair, Loadings],
    *,
    shared: Collection[Pair],
    weights: Mapping[str, float],
    max_steps: int,
    batch_size: int,
    lr: float,
    geometry: str | None,
    cycle_as_real: bool,
    random_state: int,
    device: str,
    progress_bar: bool,
    noise_dim: int | Mapping[str, int] = 0,
    coordinates: Mapping[str, np.ndarray] | None = None,
    sections: Mapping[str, Sections] | None = None,
    centre: str | None = None,
    init: Aligner | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    processes: Processes = ALONE,
    precision: str = "float32",
) -> tuple[Aligner, dict[str, list[float]]]:
    """Fit a method's aligner on model-space cells (n × p per modality); returns it, on CPU, and the history.

    `shared`: ordered pairs of modalities in one space. `noise_dim`: width of the noise that generators take beside the
    cells, for all or by source modality. `coordinates` (n × d) of some modalities are mapped along, inside their
    `sections`. `centre`: of a star. `init`: whose networks are trained on. `checkpoint_dir`: where the state of the training
    is kept. `processes`: that train together. `precision`: of products outside the geometry.
    """
    found = lookup(method)
    noise = {m: int(noise_dim.get(m, 0) if isinstance(noise_dim, Mapping) else noise_dim) for m in x}
    rules = (check_geometry(geometry), cycle_as_real, found.betas, found.plain, precision)
    recipe = Recipe(max_steps, batch_size, lr, *rules)
    return Aligner.fit(
        x,
        couplings,
        loadings,
        shared=shared,
        weights=weights,
        recipe=recipe,
        random_state=random_state,
        device=device,
        progress_bar=progress_bar,
        noise=noise,
        coordinates=coordinates,
        sections=sections,
        centre=centre,
        init=init,
        checkpoint_dir=checkpoint_dir,
        processes=processes,
        **found.settings,
    )
