"""Methods by name: what belongs to each, what each follows, states, bits."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace
from typing import Any

import mudata as md
import numpy as np
import pytest
import torch

import scmmgan as smm
from scmmgan import metrics
from scmmgan.model.coupling.coupling import couple_known
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.defaults import LOSS_WEIGHTS
from scmmgan.model.nets import methods
from scmmgan.model.nets.aligner import Aligner
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.nets.networks import BarycentricMap, Generator, PaperGenerator

NAMES = ["scmmgan", "coupling", "scmmgan-paper", "cyclegan"]
LATENT = {"cmae": {"pairs", "labels"}, "con-aae": {"pairs", "labels"}, "scmodal": {"links"}, "jamie": {"pairs"}}


def marks(x: dict) -> dict:
    return {m: find_landmarks(v) for m, v in x.items()}


def data(n: int = 120, seed: int = 0) -> tuple[dict, dict, dict]:
    """Model-space cells of one population, couplings by 12 links, loadings of 3."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3, 12))
    latent = {m: rng.normal(size=(n - 8 * i, 3)) * [2, 1, 0.7] for i, m in enumerate("ab")}
    x = {m: (v @ rng.normal(size=(3, 4 + i))).astype(np.float32) for i, (m, v) in enumerate(latent.items())}
    linked = {m: v @ directions for m, v in latent.items()}
    sides = {m: np.linalg.lstsq(x[m], linked[m][:, :3], rcond=None)[0] for m in x}
    loadings = {(s, t): (sides[s], sides[t], np.ones(3), np.ones(3)) for s, t in (("a", "b"), ("b", "a"))}
    return x, couple_known(x, marks(x), linked), loadings


def fit(method: str, x: dict, couplings: dict, loadings: dict, **arguments: Any) -> tuple[Aligner, dict]:
    found = methods.lookup(method)
    own = {name: getattr(found, name) for name in ("weights", "lr", "geometry")}
    settings = {"shared": (), "max_steps": 3, "batch_size": 32, "cycle_as_real": False, "random_state": 0}
    rest = {"device": "cpu", "progress_bar": False}
    return methods.fit(method, x, couplings, loadings, **{**own, **settings, **rest, **arguments})


def state(aligner: Aligner) -> dict[str, np.ndarray]:
    return aligner.state()[1]


def same(first: Aligner, second: Aligner) -> bool:
    a, b = state(first), state(second)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# --- names -------------------------------------------------------------------------------------------------------


def test_names():
    assert [name for name, of in methods.METHODS.items() if of.fit is None] == NAMES
    assert set(LATENT) <= set(methods.METHODS)


@pytest.mark.parametrize("wrong", ["scMMGAN", "gan", "", None, 3, ["scmmgan"]])
def test_unknown_methods_are_refused(wrong: Any):
    with pytest.raises(
        ValueError, match=r"`method` must be one of \['scmmgan', 'coupling', 'scmmgan-paper', 'cyclegan', 'cmae'"
    ):
        methods.lookup(wrong)


def test_a_close_name_is_suggested():
    with pytest.raises(ValueError, match="Did you mean 'cyclegan'"):
        methods.lookup("cycle-gan")
    with pytest.raises(ValueError, match="Did you mean 'subspace'"):
        methods.check_geometry("subspaces")


@pytest.mark.parametrize("wrong", ["Heat", "diffusion", "", 0, ["heat"]])
def test_unknown_geometries_are_refused(wrong: Any):
    with pytest.raises(ValueError, match=r"`geometry` must be one of \['heat', 'subspace', 'eigvec', None\]"):
        methods.check_geometry(wrong)


@pytest.mark.parametrize("known", ["heat", "subspace", "eigvec", None])
def test_known_geometries(known: str | None):
    assert methods.check_geometry(known) == known


@pytest.mark.parametrize("method", ["cmae", "con-aae", "jamie", "links-matching", "random"])
def test_methods_that_compare_no_geometry_say_so(method: str):
    wrong: Any
    for wrong in ("heat", "subspaces", 0, ["heat"]):
        with pytest.raises(
            ValueError,
            match=rf"`method='{method}'` compares no geometry, got `geometry={re.escape(repr(wrong))}`: "
            r"leave it out. Methods that compare one: \['scmmgan', .*'scmodal'.*\]\.$",
        ):
            methods.check_arguments(method, PLAIN | {"geometry": wrong}, ["a", "b"])
    for left_out in ("auto", None):
        methods.check_arguments(method, PLAIN | {"geometry": left_out}, ["a", "b"])


def test_hidden_is_a_number_or_published():
    with pytest.raises(
        TypeError,
        match=r"`hidden` must be a whole number, 'published' or None, got 'publishd'\. Did you mean 'published'",
    ):
        methods.check_arguments("cmae", PLAIN | {"hidden": "publishd"}, ["a", "b"])
    with pytest.raises(TypeError, match=r"or None, got 'x'\.$"):
        methods.check_arguments("cmae", PLAIN | {"hidden": "x"}, ["a", "b"])
    # who cannot use it says that
    with pytest.raises(ValueError, match="cannot use `hidden`"):
        methods.check_arguments("scmmgan", PLAIN | {"hidden": "publishd"}, ["a", "b"])


def test_options_of_one_method():
    assert methods.check_options("jamie", None) == {"dropout": 0.0, "ratio": 1.0}
    found = methods.check_options("jamie", {"dropout": np.float32(0.5), "ratio": 0})
    assert {name: (value, type(value)) for name, value in found.items()} == {
        "dropout": (0.5, float),
        "ratio": (0, float),
    }
    assert methods.check_options("links-matching", {"weak_links": np.True_}) == {"weak_links": True}
    assert methods.check_options("scmmgan", None) == methods.check_options("scmmgan", {}) == {}
    assert [name for name in methods.METHODS if methods.can_use(name, "options")] == ["cmae", "jamie", "links-matching"]


@pytest.mark.parametrize(
    ("method", "given", "error", "message"),
    [
        (
            "jamie",
            {"drop": 0.6},
            KeyError,
            r"'jamie'` has no option 'drop'\. Did you mean 'dropout'\? Known: \['dropout', 'ratio'\]",
        ),
        (
            "scmmgan",
            {"dropout": 0.6},
            ValueError,
            r"'scmmgan'` cannot use `options`: .*'jamie': \['dropout', 'ratio'\]",
        ),
        ("jamie", {"dropout": 1.5}, ValueError, "'dropout' must be a number from 0 to 1, got 1.5"),
        ("jamie", {"ratio": float("nan")}, ValueError, "'ratio' must be a number from 0 to 1, got nan"),
        ("jamie", {"ratio": True}, TypeError, "'ratio' must be a number from 0 to 1, got True"),
        ("jamie", {"ratio": "0.5"}, TypeError, "'ratio' must be a number from 0 to 1, got '0.5'"),
        ("cmae", {"conditional_adversary": 1}, TypeError, "must be True or False, got 1"),
        ("cmae", ["conditional_adversary"], TypeError, "`options` must be a dict"),
    ],
)
def test_options_that_are_refused(method: str, given: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        methods.check_options(method, given)


def test_options_of_an_extension(monkeypatch: pytest.MonkeyPatch):
    """Defaults may be whole numbers, what is given may not be cut to one."""
    monkeypatch.setitem(methods.METHODS, "own", methods.Method(options={"share": 1, "on": True}))
    assert methods.check_options("own", {"share": 0.6}) == {"share": 0.6, "on": True}


def test_what_a_method_can_use_of_what_all_are_given():
    given = {"links": "gene", "pairs": "x", "hidden": 8, "options": {"dropout": 0.6, "weak_links": True}}
    assert methods.usable("jamie", given) == {"pairs": "x", "hidden": 8, "options": {"dropout": 0.6}}
    assert methods.usable("cmae", given) == {"pairs": "x", "hidden": 8, "options": None}
    assert methods.usable("links-matching", given) == {"links": "gene", "options": {"weak_links": True}}
    with pytest.raises(KeyError, match=r"No method has the option 'drop'\. Did you mean 'dropout'"):
        methods.usable("jamie", {"options": {"drop": 1}})


def test_settings_of_the_methods():
    default, paper, cyclegan = (methods.lookup(name) for name in ("scmmgan", "scmmgan-paper", "cyclegan"))
    assert (default.max_steps, default.batch_size, default.lr, default.betas) == (500, 128, 2e-3, (0.5, 0.99))
    assert default.weights == LOSS_WEIGHTS
    assert default.geometry == "heat"
    assert (paper.max_steps, paper.batch_size, paper.lr, paper.betas) == (20_000, 256, 1e-4, (0.9, 0.999))
    assert paper.weights == {
        "adversarial": 1, "cycle": 1, "anchors": 10, "links": 10, "geometry": 1, "identity": 0, "consistency": 0,
    }  # fmt: skip
    assert paper.geometry == "eigvec"
    assert {name for name, weight in cyclegan.weights.items() if weight and name != "geometry"} == {
        "adversarial",
        "cycle",
    }
    # what the default is compared with does not move with the default
    assert (cyclegan.weights["adversarial"], cyclegan.weights["cycle"]) == (1, 1)
    assert paper.weights["adversarial"] == 1
    assert cyclegan.geometry is None


@pytest.mark.parametrize(
    ("method", "kind"),
    [("scmmgan", Generator), ("cyclegan", Generator), ("scmmgan-paper", PaperGenerator), ("coupling", BarycentricMap)],
)
def test_networks(method: str, kind: type):
    aligner, _ = fit(method, *data(), max_steps=1)
    assert {type(net) for net in aligner.generators.values()} == {kind}


# --- what they cannot use ----------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "links": "auto", "pairs": None, "labels": None, "hidden": None, "smooth": {"a": "auto"}, "n_pcs": 50, "counts": "auto",
    "noise_dim": 0, "cycle_as_real": False, "spatial": None, "library_key": None, "devices": 1,
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "links": "gene", "pairs": "obs_names", "labels": {"a": "cell_type"}, "hidden": 8, "smooth": 2, "n_pcs": 20,
    "counts": "counts", "noise_dim": {"a": 3}, "cycle_as_real": True, "spatial": "spatial", "library_key": "section",
    "devices": 2,
}  # fmt: skip


@pytest.mark.parametrize("argument", OTHERS)
@pytest.mark.parametrize("method", LATENT)
def test_arguments_that_a_method_cannot_use_are_refused(method: str, argument: str):
    """Every cell of the table; the message names the methods that can."""
    given = PLAIN | {argument: OTHERS[argument]}
    if argument in LATENT[method] | {"hidden"}:
        assert argument not in methods.check_arguments(method, given, ["a", "b"])
        return
    with pytest.raises(
        ValueError, match=rf"`method='{method}'` cannot use `{argument}`: leave it out. Methods .*'scmmgan'"
    ):
        methods.check_arguments(method, given, ["a", "b"])


@pytest.mark.parametrize("method", LATENT)
def test_what_is_left_out_reads_nothing(method: str):
    left = methods.check_arguments(method, PLAIN, ["a", "b"])
    assert set(left) == {*PLAIN, "checkpoint_dir", "maps", "precision"} - LATENT[method] - {"hidden"}
    assert {name: value for name, value in left.items() if value} == {
        "maps": "all",
        "devices": 1,
        "precision": "float32",
    }


def test_precision_of_the_products():
    assert methods.check_precision("float32", "mps") == "float32"
    assert methods.check_precision("tf32", "cuda:1") == "tf32"
    assert methods.check_precision("bf16", "cpu") == "bf16"
    for precision, device in (("tf32", "cpu"), ("tf32", "mps"), ("bf16", "mps")):
        with pytest.raises(ValueError, match=rf"`precision='{precision}'` needs one of the devices \['cuda'.*{device}"):
            methods.check_precision(precision, device)
    wrong: Any
    for wrong in ("half", 16, None):
        with pytest.raises(ValueError, match=r"must be one of \['float32', 'tf32', 'bf16'\], got"):
            methods.check_precision(wrong, "cpu")
    assert [name for name in NAMES if methods.can_use(name, "precision")] == ["scmmgan", "scmmgan-paper", "cyclegan"]
    with pytest.raises(
        ValueError, match=r"'jamie'` cannot use `precision`.*\['scmmgan', 'scmmgan-paper', 'cyclegan'\]"
    ):
        methods.check_arguments("jamie", {**PLAIN, "precision": "bf16"}, ["a", "b"])


def test_tables_are_refused_too_and_hidden_by_others():
    with pytest.raises(ValueError, match=r"cannot use `pairs`.*'cmae', 'con-aae', 'jamie'"):
        methods.check_arguments("scmodal", PLAIN | {"pairs": {"a": ["x"], "b": ["y"]}}, ["a", "b"])
    with pytest.raises(
        ValueError, match=r"`method='scmmgan'` cannot use `hidden`.*'cmae', 'con-aae', 'scmodal', 'jamie'"
    ):
        methods.check_arguments("scmmgan", PLAIN | {"hidden": "published"}, ["a", "b"])
    assert methods.check_arguments("scmmgan", PLAIN | OTHERS | {"hidden": None}, ["a", "b"]) == {"hidden": None}


@pytest.mark.parametrize("method", ["cmae", "con-aae", "jamie"])
def test_methods_for_two_modalities(method: str):
    with pytest.raises(
        ValueError, match=rf"`method='{method}'` maps between 2 modalities, got \['a', 'b', 'c'\].*'scmodal'"
    ):
        methods.check_arguments(method, PLAIN, ["a", "b", "c"])
    assert "links" not in methods.check_arguments("scmodal", PLAIN, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({"a": np.zeros((4, 2))}, r"gave embeddings of shapes {'a': \(4, 2\), 'b': \(0,\)}"),
        ({"a": np.zeros((4, 2)), "b": np.zeros((4, 2))}, "of {'a': 4, 'b': 3} cells: one space"),
        ({"a": np.zeros((4, 2)), "b": np.zeros((3, 1))}, "one space is needed"),
        ({"a": np.zeros((4, 2)), "b": np.full((3, 2), np.nan)}, "gave NaN or infinite values in the embedding of 'b'"),
    ],
)
def test_what_a_method_gives_is_checked(embeddings: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    own = methods.Method(weights={}, fit=lambda *_: Fitted(embeddings))
    monkeypatch.setitem(methods.METHODS, "own", own)
    problem = SimpleNamespace(modalities={"a": range(4), "b": range(3)})
    with pytest.raises(ValueError, match=f"method 'own' .*{message}"):
        methods.fit_latent("own", problem, {})


def test_published_settings_are_the_defaults():
    found = {name: methods.lookup(name) for name in LATENT}
    assert {n: (m.max_steps, m.batch_size, m.lr) for n, m in found.items()} == {
        "cmae": (192_000, 32, 1e-4),
        "con-aae": (180_000, 32, 1e-4),
        "scmodal": (10_000, 500, 1e-3),
        "jamie": (10_000, 512, 1e-3),
    }
    assert found["cmae"].weights == {"reconstruction": 10, "adversarial": 10, "labels": 10, "anchors": 0.1}
    expected = {
        "reconstruction": 10,
        "adversarial": 10,
        "mmd": 0,
        "cycle": 10,
        "contrast": 10,
        "labels": 1,
        "anchors": 0.1,
    }
    assert found["con-aae"].weights == expected
    assert found["scmodal"].weights == {"adversarial": 1, "reconstruction": 10, "cycle": 10, "links": 1, "geometry": 10}
    assert found["jamie"].weights == {"kl": 0.032, "combination": 32, "reconstruction": 1, "alignment": 1}
    assert [of.geometries for of in found.values()] == [(), (), ("kernel", "centred"), ()]


# --- what they follow --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("scmmgan", {"adversarial", "cycle", "anchors", "links", "geometry"}),
        ("scmmgan-paper", {"adversarial", "cycle", "links", "geometry"}),
        ("cyclegan", {"adversarial", "cycle"}),
        ("coupling", {"cycle", "anchors"}),
    ],
)
def test_terms(method: str, terms: set[str]):
    _, history = fit(method, *data())
    assert set(history) - {"step", "discriminator", "discriminator gradient", "gradient"} == terms
    assert len({len(values) for values in history.values()}) == 1


def elsewhere(couplings: dict) -> dict:
    return {pair: dataclasses.replace(c, anchors=c.anchors[::-1].copy()) for pair, c in couplings.items()}


@pytest.mark.parametrize("method", NAMES)
def test_who_follows_the_coupling(method: str):
    x, couplings, loadings = data()
    first, _ = fit(method, x, couplings, loadings)
    second, _ = fit(method, x, elsewhere(couplings), loadings)
    assert same(first, second) == (method in ("scmmgan-paper", "cyclegan"))


@pytest.mark.parametrize("method", ["scmmgan-paper", "cyclegan"])
def test_who_follows_known_pairs(method: str):
    x, couplings, loadings = data()
    known = {pair: dataclasses.replace(c, known=np.arange(len(c.anchors)) < 30) for pair, c in couplings.items()}
    first, _ = fit(method, x, couplings, loadings)
    second, history = fit(method, x, known, loadings)
    assert same(first, second) == (method == "cyclegan")
    assert ("anchors" in history) == (method == "scmmgan-paper")
    if method == "scmmgan-paper":
        # the others' anchors say nothing
        third, _ = fit(
            method,
            x,
            {p: dataclasses.replace(c, anchors=np.where(c.known[:, None], c.anchors, 9)) for p, c in known.items()},
            loadings,
        )
        assert same(second, third)


def test_known_pairs_of_the_published_setting_are_learnt():
    x, couplings, _ = data()
    known = {pair: dataclasses.replace(c, known=np.arange(len(c.anchors)) < 60) for pair, c in couplings.items()}
    # the cells that are followed do not depend on the critics, which cost most of the time
    weights = {**methods.lookup("scmmgan-paper").weights, "adversarial": 0.0}
    aligner, history = fit("scmmgan-paper", x, known, {}, max_steps=60, lr=3e-3, geometry=None, weights=weights)
    assert history["anchors"][-1] < history["anchors"][0] / 2
    error = ((aligner.translate(x["a"], "a", "b") - couplings["a", "b"].anchors)[60:] ** 2).mean()
    assert error < 0.3 * couplings["a", "b"].anchors.var()


def test_cyclegan_starts_nowhere_near_the_coupling():
    x, couplings, loadings = data()
    default, cyclegan = (
        fit(name, x, couplings, loadings, max_steps=1, lr=1e-12)[0] for name in ("scmmgan", "cyclegan")
    )
    goal = couplings["a", "b"].anchors
    near, far = (((a.translate(x["a"], "a", "b") - goal) ** 2).mean() / goal.var() for a in (default, cyclegan))
    assert near < 0.5
    assert far > 0.8


def test_shared_space_is_the_identity_for_the_default_networks_only():
    x, _, _ = data()
    x["b"] = x["b"][:, :4]
    couplings = couple_known(x, marks(x), x)
    for method, identity in (("scmmgan", True), ("cyclegan", True), ("scmmgan-paper", False)):
        aligner, _ = fit(method, x, couplings, {}, max_steps=1, lr=1e-12, shared=[("a", "b"), ("b", "a")])
        assert np.allclose(aligner.translate(x["a"], "a", "b"), x["a"], atol=1e-5) == identity


# --- the coupling as a map ---------------------------------------------------------------------------------------


def test_coupling_is_the_barycentric_map():
    x, couplings, loadings = data()
    aligner, history = fit("coupling", x, couplings, loadings)
    for (s, t), c in couplings.items():
        np.testing.assert_allclose(aligner.translate(x[s], s, t), c.anchors, atol=1e-5)
    assert history["step"] == [0]
    assert history["anchors"][0] == pytest.approx(0, abs=1e-8)
    assert history["cycle"][0] > 0


def test_coupling_maps_cells_it_has_not_seen():
    """Every fifth cell left out: near the anchor that it would have had."""
    x, couplings, loadings = data(400)
    kept = {m: np.arange(len(v)) % 5 > 0 for m, v in x.items()}
    part = {}
    for (s, t), c in couplings.items():
        of = {name: getattr(c, name)[kept[s]] for name in ("plan", "anchors", "weight", "known")}
        rest = dataclasses.replace(c.landmarks, label=c.landmarks.label[kept[t]])
        part[s, t] = dataclasses.replace(c, landmarks=rest, **of)
    aligner, _ = fit("coupling", {m: v[kept[m]] for m, v in x.items()}, part, loadings)
    for (s, t), c in couplings.items():
        goal = c.anchors[~kept[s]]
        error = ((aligner.translate(x[s][~kept[s]], s, t) - goal) ** 2).mean()
        assert error < 0.12 * goal.var()


def test_coupling_remembers_so_many_cells_at_most(monkeypatch: pytest.MonkeyPatch):
    from scmmgan.model.nets import aligner as module

    monkeypatch.setattr(module, "REMEMBERED_CELLS", 50)
    x, couplings, loadings = data()
    aligner, _ = fit("coupling", x, couplings, loadings)
    assert [len(v) for name, v in state(aligner).items() if "cells" in name] == [50, 50]
    goal = couplings["a", "b"].anchors
    assert ((aligner.translate(x["a"], "a", "b") - goal) ** 2).mean() < 0.2 * goal.var()


def test_coupling_does_not_ask_unmatched_cells():
    x, couplings, loadings = data()
    found = {}
    for pair, c in couplings.items():
        gone = np.arange(len(c.anchors)) % 2 == 0
        anchors = np.where(gone[:, None], 50, c.anchors).astype(np.float32)
        found[pair] = dataclasses.replace(c, anchors=anchors, weight=1.0 - gone)
    aligner, _ = fit("coupling", x, found, loadings)
    assert aligner.translate(x["a"], "a", "b").max() < 20
    none = {pair: dataclasses.replace(c, weight=np.zeros(len(c.anchors))) for pair, c in couplings.items()}
    aligner, _ = fit("coupling", x, none, loadings)
    np.testing.assert_allclose(aligner.translate(x["a"], "a", "b"), couplings["a", "b"].anchors, atol=1e-5)


# --- from a problem ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [[("a", "b"), ("b", "a")], []], ids=["one space", "two"])
def test_a_problem_is_fitted_with_its_coordinates(shared: list, monkeypatch: pytest.MonkeyPatch):
    x, couplings, loadings = data()
    places = np.random.default_rng(0).normal(size=(112, 2))
    modalities: Any = {
        "a": SimpleNamespace(coordinates=None, sections=None),
        "b": SimpleNamespace(coordinates=places, sections=None),
    }
    problem: Any = SimpleNamespace(modalities=modalities, shared=shared, centre=None)
    domains: Any = {m: SimpleNamespace(x=v) for m, v in x.items()}
    asked: dict[str, Any] = {}
    monkeypatch.setattr(methods, "fit", lambda **how: asked.update(how) or ("aligner", {}))
    assert methods.fit_problem(problem, domains, couplings, loadings, {"method": "scmmgan", "lr": 1}) == ("aligner", {})
    assert asked["x"].keys() == x.keys()
    assert all(asked["x"][m] is x[m] for m in x)
    assert asked["couplings"] is couplings
    assert asked["loadings"] is loadings
    assert asked["coordinates"].keys() == {"b"}
    assert asked["coordinates"]["b"] is places
    assert (asked["shared"], asked["method"], asked["lr"]) == (shared, "scmmgan", 1)
    assert set(asked) <= {
        *methods.SETTINGS,
        "x",
        "couplings",
        "loadings",
        "shared",
        "coordinates",
        "sections",
        "centre",
    }


# --- every method ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def fitted(request: pytest.FixtureRequest) -> tuple[str, Aligner, dict]:
    x, couplings, loadings = data()
    return request.param, fit(request.param, x, couplings, loadings)[0], x


def test_one_cell_alone_and_in_any_order(fitted: tuple):
    _, aligner, x = fitted
    rng = np.random.default_rng(0)
    cells = np.vstack([x["a"], 1.3 * x["a"] + 0.2 * rng.normal(size=x["a"].shape)]).astype(np.float32)
    batch = aligner.translate(cells, "a", "b")
    alone = np.concatenate([aligner.translate(row[None], "a", "b") for row in cells])
    np.testing.assert_allclose(alone, batch, atol=1e-5)
    order = rng.permutation(len(cells))
    np.testing.assert_allclose(aligner.translate(cells[order], "a", "b"), batch[order], atol=1e-5)
    assert batch.dtype == np.float32
    assert np.isfinite(aligner.embed(cells, "a")).all()


def test_state_restores_the_aligner(fitted: tuple):
    _, aligner, x = fitted
    config, weights = aligner.state()
    assert all(type(v) is np.ndarray and v.dtype == np.float32 and v.ndim > 0 for v in weights.values())
    for value in weights.values():
        value.flags.writeable = False
    again = Aligner.from_state(json.dumps(json.loads(config)), weights)
    assert again.networks == aligner.networks
    assert same(again, aligner)
    new = (x["b"] + 0.1).astype(np.float32)
    np.testing.assert_array_equal(again.translate(new, "b", "a"), aligner.translate(new, "b", "a"))
    np.testing.assert_array_equal(again.embed(x["a"], "a"), aligner.embed(x["a"], "a"))


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("cycle_as_real", [False, True])
def test_same_seed_same_bits(method: str, cycle_as_real: bool):
    x, couplings, loadings = data()
    settings = {"cycle_as_real": cycle_as_real, "max_steps": 2}
    first, history = fit(method, x, couplings, loadings, **settings)
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        second, again = fit(method, x, couplings, loadings, **settings)
    finally:
        torch.set_num_threads(threads)
    assert same(first, second)
    assert history == again
    other, _ = fit(method, x, couplings, loadings, **settings, random_state=1)
    assert same(first, other) == (method == "coupling")


@pytest.mark.parametrize("geometry", ["heat", "subspace", "eigvec", None])
@pytest.mark.parametrize("method", ["scmmgan", "scmmgan-paper", "cyclegan"])
def test_any_geometry_with_any_method(method: str, geometry: str | None):
    aligner, history = fit(method, *data(), geometry=geometry)
    assert ("geometry" in history) == (geometry is not None)
    assert all(np.isfinite(v).all() for v in state(aligner).values())


# --- the order of rows -------------------------------------------------------------------------------------------


def measured(order: np.ndarray | None) -> md.MuData:
    """One cell a row, under the same name on both sides; or those of the second in another order, under other names."""
    toy, parts = smm.datasets.toy(n_cells=120, n_features=[30, 20]), {}
    for m in toy.mod:
        parts[m] = toy[m][np.argsort(toy.uns["truth"][m]["cell"])].copy()
        parts[m].obs_names = [f"cell_{i}" for i in range(120)]
    if order is not None:
        parts["protein"] = parts["protein"][order].copy()
        parts["protein"].obs_names = [f"other_{i}" for i in range(120)]
    return md.MuData(parts)


@pytest.mark.usefixtures("few_tables")
@pytest.mark.parametrize(
    ("method", "most"),
    # networks that start at random differ most by their seeds
    [
        ("coupling", 1.2),
        ("scmmgan", 0.9),
        ("cyclegan", 0.1),
        pytest.param("scmmgan-paper", 1.1, marks=pytest.mark.slow),
    ],
)
def test_order_and_names_of_cells_say_nothing(method: str, most: float):
    """From end to end every cell is mapped as before, no further than about what seeds differ by; and no nearer to its partner."""
    order, mapped, scores = np.random.default_rng(1).permutation(120), {}, {}
    for way, cells in (("in order", None), ("shuffled", order)):
        place = np.arange(120) if cells is None else np.argsort(order)
        for seed in (0, 1):
            mdata, how = (
                measured(cells),
                {} if method == "coupling" else {"max_steps": 12, "batch_size": 32, "lr": 2e-3},
            )
            smm.tl.align(mdata, links="gene", method=method, random_state=seed, progress_bar=False, **how)
            z = {m: mdata[m].obsm["X_scmmgan"] for m in mdata.mod}
            scores[way, seed] = metrics.foscttm(z["rna"], z["protein"][place])
            mapped[way, seed] = mdata["rna"].obsm["scmmgan_protein"], mdata["protein"].obsm["scmmgan_rna"][place]

    def apart(first: tuple[str, int], second: tuple[str, int]) -> list[float]:
        return [float(np.sqrt(((a - b) ** 2).mean())) for a, b in zip(mapped[first], mapped[second])]

    noise = np.mean([apart((way, 0), (way, 1)) for way in ("in order", "shuffled")], axis=0)
    moved = np.mean([apart(("in order", seed), ("shuffled", seed)) for seed in (0, 1)], axis=0)
    assert (noise > 0).all()
    assert (moved < most * noise).all()
    for seed in (0, 1):
        assert abs(scores["in order", seed] - scores["shuffled", seed]) < 0.02
