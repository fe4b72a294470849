"""The aligner on arrays: starts, translation, embedding, state."""

from __future__ import annotations

import dataclasses
import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from scmmgan.model.coupling.coupling import couple_known
from scmmgan.model.coupling.landmarks import find_landmarks
from scmmgan.model.defaults import LOSS_WEIGHTS
from scmmgan.model.nets import aligner as module
from scmmgan.model.nets.aligner import Aligner, Frame, split
from scmmgan.model.nets.training import Recipe


def data(names: tuple[str, ...] = ("a", "b"), n: int = 120, seed: int = 0) -> tuple[dict, dict]:
    """Model-space cells of one three-dimensional population, coupled by 12 links."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3, 12))
    latent = {m: rng.normal(size=(n - 8 * i, 3)) for i, m in enumerate(names)}
    x = {m: (v @ rng.normal(size=(3, 4 + i))).astype(np.float32) for i, (m, v) in enumerate(latent.items())}
    linked = {m: v @ directions for m, v in latent.items()}
    couplings: dict = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            own, marks = {a: x[a], b: x[b]}, {m: find_landmarks(x[m]) for m in (a, b)}
            couplings |= couple_known(own, marks, {a: linked[a], b: linked[b]})
    return x, couplings


def fit(x: dict, couplings: dict, **arguments: Any) -> Aligner:
    rules = {"max_steps": 30, "batch_size": 64, "lr": 1e-3}
    rules |= {name: arguments.pop(name) for name in set(rules) & set(arguments)}
    settings = {"shared": (), "weights": LOSS_WEIGHTS, "recipe": Recipe(**rules), **arguments}
    return Aligner.fit(x, couplings, {}, random_state=0, device="cpu", progress_bar=False, **settings)[0]


@pytest.fixture(scope="module")
def trained() -> tuple[Aligner, dict]:
    x, couplings = data(("a", "b", "c"))
    return fit(x, couplings), x


def test_one_generator_per_ordered_pair(trained: tuple[Aligner, dict]):
    aligner, x = trained
    assert aligner.modalities == ["a", "b", "c"]
    assert aligner.widths == {"a": 4, "b": 5, "c": 6}
    assert set(aligner.generators) == set(permutations("abc", 2))
    for s, t in aligner.generators:
        y = aligner.translate(x[s], s, t)
        assert y.shape == (len(x[s]), aligner.widths[t])
        assert y.dtype == np.float32
        assert np.isfinite(y).all()


def test_a_star_maps_through_its_centre():
    """Generators to and from the centre only; two in a row lead from any other to any other, coordinates left out."""
    x, couplings = data(("a", "b", "c", "d"), n=60)
    places = {"b": np.random.default_rng(0).random((len(x["b"]), 2))}
    star = fit(x, couplings, centre="b", coordinates=places, noise={"a": 2, "b": 2}, max_steps=8)
    assert set(star.generators) == {pair for pair in permutations("abcd", 2) if "b" in pair}
    for s, t in (("a", "c"), ("d", "a")):
        assert star.through(s, t) == "b"
        chained = star.translate(star.translate(x[s], s, "b"), "b", t)
        np.testing.assert_array_equal(star.translate(x[s], s, t), chained)
        with torch.no_grad():
            found = star.generator(s, t).eval()(torch.from_numpy(x[s])).numpy()
        np.testing.assert_allclose(found, chained, atol=1e-5)
    assert star.through("a", "b") is star.through("b", "d") is None
    assert star.generator("a", "b") is star.generators["a", "b"]
    # as many numbers as modalities, not as pairs of them
    sizes = [
        sum(v.size for v in fit(*data(tuple("abcde"[:n]), n=60), centre="a", max_steps=1).state()[1].values())
        for n in (3, 4, 5)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.1)
    config, weights = star.state()
    again = Aligner.from_state(config, weights)
    for s, t in permutations("abcd", 2):
        np.testing.assert_array_equal(again.translate(x[s], s, t), star.translate(x[s], s, t))
    np.testing.assert_array_equal(again.embed(x["c"], "c"), star.embed(x["c"], "c"))
    draws = [star.sample(x["a"], "a", "c", np.random.default_rng(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert star.place(x["a"], "a", "b").shape == (60, 2)


def test_training_goes_on_from_other_networks():
    x, couplings = data()
    first = fit(x, couplings)
    again = fit(x, couplings, init=first, max_steps=1, lr=1e-9)
    np.testing.assert_allclose(again.translate(x["a"], "a", "b"), first.translate(x["a"], "a", "b"), atol=1e-3)
    fresh = fit(x, couplings, max_steps=1, lr=1e-9)
    assert np.abs(fresh.translate(x["a"], "a", "b") - first.translate(x["a"], "a", "b")).max() > 0.01
    for change, said in (
        ({"networks": "paper", "coupled": False}, r"another `method` \('default'; now 'paper'\)"),
        ({"noise": {"a": 2}}, "another `noise_dim`"),
        ({"coordinates": {"a": np.random.default_rng(0).random((120, 2))}}, "another `spatial`"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(x, couplings, init=first, **change)
    with pytest.raises(ValueError, match="another model space"):
        Aligner({"a": 3, "b": 5})._go_on(first)
    # coordinates are in the units of then
    places = {"b": np.random.default_rng(0).random((len(x["b"]), 2))}
    placed = fit(x, couplings, coordinates=places)
    moved = fit(x, couplings, coordinates={"b": 3 * places["b"]}, init=placed, max_steps=1)
    assert moved.frames == placed.frames


def test_one_cell_alone_and_in_any_order(trained: tuple[Aligner, dict]):
    aligner, x = trained
    batch = aligner.translate(x["a"], "a", "b")
    alone = np.concatenate([aligner.translate(row[None], "a", "b") for row in x["a"]])
    np.testing.assert_allclose(alone, batch, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(batch))
    np.testing.assert_allclose(aligner.translate(x["a"][order], "a", "b"), batch[order], atol=1e-5)
    # together with cells from far away
    company = aligner.translate(np.vstack([x["a"][:1], 1e3 * x["a"][1:]]), "a", "b")
    np.testing.assert_allclose(company[0], batch[0], atol=1e-5)


def test_arrays_of_any_layout(trained: tuple[Aligner, dict]):
    aligner, x = trained
    expected = aligner.translate(x["a"], "a", "b")
    read_only = x["a"].copy()
    read_only.flags.writeable = False
    for same in (x["a"].astype(np.float64), np.asfortranarray(x["a"]), read_only):
        np.testing.assert_allclose(aligner.translate(same, "a", "b"), expected, atol=1e-6)
    np.testing.assert_allclose(aligner.translate(x["a"][::-1], "a", "b"), expected[::-1], atol=1e-6)
    assert aligner.translate(x["a"][:0], "a", "b").shape == (0, 5)


def test_chunks_make_no_difference(trained: tuple[Aligner, dict], monkeypatch: pytest.MonkeyPatch):
    aligner, x = trained
    whole = aligner.translate(x["a"], "a", "b")
    monkeypatch.setattr(module, "MAP_CHUNK", 7)
    np.testing.assert_allclose(aligner.translate(x["a"], "a", "b"), whole, atol=1e-6)


def test_own_modality_is_left_as_measured(trained: tuple[Aligner, dict]):
    aligner, x = trained
    np.testing.assert_array_equal(aligner.translate(x["a"], "a", "a"), x["a"])


def test_embedding_holds_all_blocks_over_the_sd_of_measured_cells(trained: tuple[Aligner, dict]):
    aligner, x = trained
    got = aligner.embed(x["b"], "b")
    moved = {m: aligner.translate(x["b"], "b", m) @ aligner.metric[m] for m in "abc"}
    measured = {m: x[m].std() for m in "abc"}
    np.testing.assert_allclose(got, np.hstack([moved[m] / measured[m] for m in "abc"]), rtol=1e-4, atol=1e-6)
    assert got.dtype == np.float32
    # one scalar per block, for measured and mapped rows alike
    for m, own in (("a", slice(0, 4)), ("b", slice(4, 9)), ("c", slice(9, 15))):
        assert got[:, own].std() == pytest.approx(moved[m].std() / measured[m], rel=1e-4)


def test_blocks_of_two_modalities_count_alike_and_of_three_by_their_reliability():
    """A third modality that is coupled at random has nothing to say of the other two."""
    x, couplings = data(("a", "b", "c"), n=160)
    order = np.random.default_rng(0).permutation(len(x["c"]))
    for m in "ab":
        c = couplings["c", m]
        couplings["c", m] = dataclasses.replace(c, plan=c.plan[order], anchors=c.anchors[order])
    own = {m: slice(start, start + 4 + i) for i, (m, start) in enumerate(zip("abc", (0, 4, 9)))}
    aligner = fit(x, couplings, networks="coupling")
    sd = {m: aligner.embed(x[m], m)[:, own[m]].std() for m in "abc"}
    assert sd["c"] < 0.6 * min(sd["a"], sd["b"])
    alone = fit({m: x[m] for m in "ab"}, {pair: couplings[pair] for pair in permutations("ab", 2)}, networks="coupling")
    assert [alone.embed(x[m], m)[:, own[m]].std() for m in "ab"] == pytest.approx([1, 1], abs=1e-4)


def test_without_a_coupling_no_axis_is_weighed():
    x, couplings = data()
    aligner = fit(x, couplings, coupled=False)
    expected = [aligner.translate(x["b"], "b", m) / x[m].std() for m in "ab"]
    np.testing.assert_allclose(aligner.embed(x["b"], "b"), np.hstack(expected), rtol=1e-4, atol=1e-6)


def test_translation_leaves_the_input_alone(trained: tuple[Aligner, dict]):
    aligner, x = trained
    before = x["a"].copy()
    aligner.translate(x["a"], "a", "b")
    aligner.embed(x["a"], "a")
    np.testing.assert_array_equal(x["a"], before)


# --- where training starts from ----------------------------------------------------------------------------------


def test_start_is_ridge_regression_on_the_anchors():
    x, couplings = data(n=96)  # below 100 cells all are trained on
    couplings = {pair: dataclasses.replace(c, weight=np.ones(len(c.anchors))) for pair, c in couplings.items()}
    aligner = fit(x, couplings, max_steps=1, lr=1e-12)
    for (s, t), coupling in couplings.items():
        v, y = x[s].astype(float), coupling.anchors.astype(float)
        centred = v - v.mean(0)
        gram = centred.T @ centred
        gram += 1e-2 * np.trace(gram) / len(gram) * np.eye(len(gram))
        expected = centred @ np.linalg.solve(gram, centred.T @ (y - y.mean(0))) + y.mean(0)
        np.testing.assert_allclose(aligner.translate(x[s], s, t), expected, atol=1e-4)
        # and that is a sensible map already
        assert ((expected - y) ** 2).mean() < 0.5 * y.var()


def test_start_follows_the_weights_of_cells():
    x, couplings = data(n=96)
    rng = np.random.default_rng(0)
    found = {}
    for (s, t), c in couplings.items():
        anchors, weight = c.anchors.copy(), np.ones(len(c.anchors), np.float32)
        anchors[::4] = 30 * rng.normal(size=anchors[::4].shape)
        weight[::4], weight[1::4] = 0, 0.5
        found[s, t] = dataclasses.replace(c, anchors=anchors, weight=weight)
    aligner = fit(x, found, max_steps=1, lr=1e-12)
    for (s, t), c in found.items():
        # a cell of weight 1 is two of weight ½
        rows = np.repeat(np.arange(len(x[s])), (2 * c.weight).astype(int))
        v, y = x[s][rows].astype(float), c.anchors[rows].astype(float)
        centred = v - v.mean(0)
        gram = centred.T @ centred
        gram += 1e-2 * np.trace(gram) / len(gram) * np.eye(len(gram))
        weight = np.linalg.solve(gram, centred.T @ (y - y.mean(0)))
        np.testing.assert_allclose(aligner.translate(x[s], s, t), (x[s] - v.mean(0)) @ weight + y.mean(0), atol=1e-4)


def test_start_when_no_cell_is_matched():
    x, couplings = data(n=96)
    all_of_them, none = (
        {pair: dataclasses.replace(c, weight=np.full(len(c.anchors), share)) for pair, c in couplings.items()}
        for share in (1.0, 0.0)
    )
    plain, alone = (fit(x, c, max_steps=1, lr=1e-12) for c in (all_of_them, none))
    np.testing.assert_allclose(alone.translate(x["a"], "a", "b"), plain.translate(x["a"], "a", "b"), atol=1e-5)


def test_start_in_a_shared_space_is_the_identity():
    x, couplings = data(n=96)
    x["b"] = x["b"][:, :4]
    couplings = couple_known(x, {m: find_landmarks(v) for m, v in x.items()}, x)
    aligner = fit(x, couplings, max_steps=1, lr=1e-12, shared=[("a", "b"), ("b", "a")])
    np.testing.assert_allclose(aligner.translate(x["a"], "a", "b"), x["a"], atol=1e-5)
    np.testing.assert_allclose(aligner.translate(x["b"], "b", "a"), x["b"], atol=1e-5)


def test_training_beats_the_start_on_what_it_minimises():
    x, couplings = data()

    def round_trip(aligner: Aligner) -> float:
        there = aligner.translate(x["a"], "a", "b")
        return float(((aligner.translate(there, "b", "a") - x["a"]) ** 2).mean())

    start, end = (fit(x, couplings, max_steps=n, lr=lr, batch_size=32) for n, lr in ((1, 1e-12), (120, 2e-3)))
    assert round_trip(end) < round_trip(start) / 2


# --- cells that take no part -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 50, 99, 100, 101, 130, 500, 991, 5_000, 12_000])
def test_split(n: int):
    """A tenth of the cells, at most 500: one half to choose the weights on, the other to score the map on."""
    found = split({"a": n, "b": 300}, 0)["a"]
    apart = min(500, -(-n // 10))
    assert len(found.validation) == -(-apart // 2)
    assert len(found.test) == apart - len(found.validation)
    outside = np.concatenate([found.validation, found.test])
    assert len(set(outside)) == apart
    if n < 100:
        # too few to be without them
        np.testing.assert_array_equal(found.train, np.arange(n))
    else:
        np.testing.assert_array_equal(np.sort(np.concatenate([found.train, outside])), np.arange(n))
    for rows in (found.train, found.validation, found.test):
        assert (np.diff(rows) > 0).all()


def test_split_is_drawn_by_its_seed():
    sizes = {"a": 400, "b": 400}
    first, again, other = split(sizes, 0), split(sizes, 0), split(sizes, 1)
    for m in sizes:
        for part in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(first[m], part), getattr(again[m], part))
        assert not np.array_equal(first[m].test, other[m].test)
        # drawn, not the first or last ones
        assert 50 < first[m].test.mean() < 350
    assert not np.array_equal(first["a"].test, first["b"].test)


def test_training_gets_its_parts_of_the_split():
    x = {"a": np.zeros((700, 2), np.float32), "b": np.zeros((510, 3), np.float32)}
    data = module._training_data(x, {}, {}, LOSS_WEIGHTS, True, 3, "cpu")
    for m, of in split({"a": 700, "b": 510}, 3).items():
        np.testing.assert_array_equal(data.rows[m].numpy(), of.train)
        np.testing.assert_array_equal(data.held_out[m].numpy(), of.validation)


# --- coordinates -------------------------------------------------------------------------------------------------


def test_frame_keeps_the_proportions():
    places = np.random.default_rng(0).normal(size=(50, 2)) * [30, 4] + [1e4, -500]
    frame = Frame.of(places)
    found = frame.encode(places)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    # one sd of 10 over both axes, not one of each
    assert np.sqrt((found**2).mean()) == pytest.approx(10)
    np.testing.assert_allclose(found[:, 0].std() / found[:, 1].std(), places[:, 0].std() / places[:, 1].std())
    back = frame.decode(found.astype(np.float32))
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, places, atol=1e-3)
    assert np.isfinite(Frame.of(np.ones((5, 2))).encode(np.ones((5, 2)))).all()


def test_anchors_of_places_are_plain_means_or_the_partner():
    x, couplings = data()
    places = np.random.default_rng(0).normal(size=(len(x["b"]), 2))
    known = np.zeros(len(x["a"]), dtype=bool)
    known[[3, 8]] = True
    anchors = couplings["a", "b"].anchors.copy()
    anchors[[3, 8]] = x["b"][[7, 60]]
    c = dataclasses.replace(couplings["a", "b"], anchors=anchors, known=known)
    found = module._placed(c, x["b"], places, np.ones(places.shape, dtype=bool))
    np.testing.assert_array_equal(found.anchors[:, :5], anchors)
    np.testing.assert_allclose(found.anchors[~known, 5:], (c.plan @ c.landmarks.mean(places))[~known], atol=1e-6)
    np.testing.assert_allclose(found.anchors[known, 5:], places[[7, 60]])


def test_coordinates_are_mapped_along():
    """Generators into their modality emit them, those that leave it do not see them; and they travel with the state."""
    x, couplings = data()
    # places that follow the features
    places = (x["b"] @ np.random.default_rng(0).normal(size=(5, 2))).astype(np.float64) * 20 + 300
    aligner = fit(x, couplings, max_steps=30, lr=2e-3, coordinates={"b": places})
    assert aligner.translate(x["a"], "a", "b").shape == (120, 5)
    assert aligner.translate(x["b"], "b", "a").shape == (112, 4)
    found = aligner.place(x["a"], "a", "b")
    assert (found.shape, found.dtype) == ((120, 2), np.float64)
    c = couplings["a", "b"]
    goal = c.plan @ c.landmarks.mean(places)
    assert ((found - goal) ** 2).mean() < 0.3 * goal.var(0).mean()
    assert set(aligner.block_sd) == {"a", "b"}
    again = Aligner.from_state(*aligner.state())
    assert again.frames == aligner.frames
    np.testing.assert_array_equal(again.place(x["a"], "a", "b"), found)


# --- state -------------------------------------------------------------------------------------------------------


def test_state_is_text_and_plain_arrays(trained: tuple[Aligner, dict]):
    aligner, _ = trained
    config, weights = aligner.state()
    found = json.loads(config)
    assert found["modalities"] == ["a", "b", "c"]
    assert found["widths"] == {"a": 4, "b": 5, "c": 6}
    assert all(type(v) is np.ndarray and v.dtype == np.float32 for v in weights.values())
    assert not [name for name in weights if "/" in name]


def test_state_is_a_copy(trained: tuple[Aligner, dict]):
    aligner, x = trained
    before, embedded = aligner.translate(x["a"], "a", "b"), aligner.embed(x["a"], "a")
    for value in aligner.state()[1].values():
        value[...] = 0
    np.testing.assert_array_equal(aligner.translate(x["a"], "a", "b"), before)
    np.testing.assert_array_equal(aligner.embed(x["a"], "a"), embedded)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b", "c"),
        ("my mod.x", "ü:1", "c>d"),
        # names that read alike when they are joined
        ("a", "b>a", "a>b"),
        ("a", "b", "b:x"),
    ],
)
def test_state_restores_the_aligner(names: tuple[str, ...]):
    x, couplings = data(names)
    aligner = fit(x, couplings, max_steps=3)
    nets = sum(len(net.state_dict()) for net in aligner.generators.values())
    assert len(aligner.state()[1]) == nets + len(names)  # and a metric each
    again = Aligner.from_state(*aligner.state())
    assert again.modalities == list(names)
    for s, t in permutations(names, 2):
        np.testing.assert_array_equal(again.translate(x[s], s, t), aligner.translate(x[s], s, t))
        np.testing.assert_array_equal(again.embed(x[s], s), aligner.embed(x[s], s))


def test_state_can_be_read_only(trained: tuple[Aligner, dict]):
    aligner, x = trained
    config, weights = aligner.state()
    for value in weights.values():
        value.flags.writeable = False
    again = Aligner.from_state(config, weights)
    np.testing.assert_array_equal(again.translate(x["a"], "a", "c"), aligner.translate(x["a"], "a", "c"))


def test_trained_networks_are_plain_and_on_the_cpu(trained: tuple[Aligner, dict]):
    aligner, x = trained
    for net in aligner.generators.values():
        assert not net.training
        assert {p.device.type for p in net.parameters()} == {"cpu"}
    # translating leaves no graph behind
    assert not torch.is_grad_enabled() or not isinstance(aligner.translate(x["a"], "a", "b"), torch.Tensor)
