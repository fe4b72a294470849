"""Cross-modal autoencoders: shared middle layers, terms by what is known, schedule."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from scmmgan.model.nets.autoencoder import Autoencoder, Batch
from scmmgan.model.nets.cmae import CMAE
from systems import check_terms, made, passed, with_gaps


def test_middle_layers_are_one_object_also_when_loaded():
    system = made(CMAE)
    model = Autoencoder(system.task.readings, system.encoders, system.decoders, 50, 8)
    config, arrays = model.state()
    again = Autoencoder.from_state(CMAE, {**config, "modalities": ["a", "b"]}, arrays)
    for found in (model, again):
        assert found.encoders["a"][1] is found.encoders["b"][1]
        assert found.decoders["a"][0] is found.decoders["b"][0]
        assert found.encoders["a"][0] is not found.encoders["b"][0]
    x = system.task.x["a"].numpy()
    np.testing.assert_array_equal(again.embed(x, "a"), model.embed(x, "a"))
    # each weight is trained once
    assert len(system.parameters()) == len({id(p) for p in system.parameters()}) == 2 * 2 * 8 + 2 * 2


def test_networks_as_published():
    encoders, decoders = CMAE.networks({"a": 30, "b": 700}, None)
    shapes = [tuple(v.shape) for v in encoders["b"].parameters() if v.ndim == 2]
    assert shapes == [(512, 700), (512, 512), (512, 512), (100, 512), (50, 100)]
    assert [tuple(v.shape) for v in decoders["a"].parameters() if v.ndim == 2] == [
        (100, 50),
        (30, 100),
        (30, 30),
        (30, 30),
        (30, 30),
    ]
    # nothing is cut off the latent cells and the output
    assert [type(net[-1]).__name__ for net in (encoders["a"][1], decoders["a"][1])] == ["Linear", "Linear"]
    assert tuple(CMAE.networks({"b": 700}, "published")[0]["b"][0][0].weight.shape) == (700, 700)


@pytest.mark.parametrize("known", [(), ("labels",), ("pairs",), ("labels", "pairs")])
def test_terms_by_what_is_known(known: tuple[str, ...]):
    system = made(CMAE, **dict.fromkeys(known, True))
    assert set(system.step()) == {"reconstruction", "adversarial", *(n.replace("pairs", "anchors") for n in known)}
    assert ("labels" in system.others) == ("labels" in known)


def test_encoders_move_towards_the_other_side():
    """With a critic that tells the sides apart the critic has no loss, and the encoders have the most."""
    system = made(CMAE)
    system.critics["z"] = torch.nn.Linear(50, 1)
    with torch.no_grad():
        system.critics["z"].weight.zero_()
        system.critics["z"].weight[0, 0] = 1
        system.critics["z"].bias.zero_()
    system.critics["z"].requires_grad_(False)
    z = {"a": torch.zeros(4, 50), "b": torch.ones(4, 50)}
    batch = type("Batch", (), {"z": z, "rows": {}, "x": {"a": torch.zeros(4, 12), "b": torch.zeros(4, 8)}})
    assert float(system.critic_loss(batch)) == 0
    assert float(system.terms(batch)["adversarial"].detach()) == pytest.approx(2)


@pytest.mark.parametrize("conditional", [False, True])
def test_losses_are_those_of_the_equations(conditional: bool):
    """Batches of unequal size, cells without a label on both sides, all known pairs at every step."""
    system, pairs, labels, rows = with_gaps(CMAE, options={"conditional_adversary": conditional})
    net = partial(passed, slope=0.2)

    def expected(x: dict[str, np.ndarray]) -> dict[str, float]:
        z = {m: net(system.encoders[m], v) for m, v in x.items()}
        read = dict(z)
        if conditional:
            # ten copies of the label, one-hot, of cells that have one
            at = {m: labels[m][rows[m]] for m in "ab"}
            read = {
                m: np.array([[*v, *np.tile(np.arange(3) == y, 10)] for v, y in zip(z[m], at[m]) if y >= 0])
                for m in "ab"
            }
        a, b = (net(system.critics["z"], read[m])[:, 0] for m in "ab")
        reconstruction = classes = 0.0
        for m in "ab":
            reconstruction += float(np.abs(x[m] - net(system.decoders[m], z[m])).mean())
            logits = net(system.others["labels"], z[m])
            known = [(v, y) for v, y in zip(logits, labels[m][rows[m]]) if y >= 0]
            classes += float(np.mean([np.log(np.exp(v).sum()) - v[y] for v, y in known]))
        ends = [net(system.encoders[m], system.task.x[m].numpy()[pairs[:, i]]) for i, m in enumerate("ab")]
        return {
            "reconstruction": reconstruction,
            "adversarial": float(np.mean((a - 1) ** 2) + np.mean(b**2)),
            "labels": classes,
            "anchors": float(np.abs(ends[0] - ends[1]).mean()),
            "critic": 10 * float(np.mean(a**2) + np.mean((b - 1) ** 2)),
        }

    check_terms(system, rows, expected)


def test_weight_of_the_adversary_is_that_of_the_critic_too():
    losses = []
    for weight in (10.0, 2.0):
        system = made(CMAE, weights={"adversarial": weight})
        losses.append(float(system.critic_loss(Batch(0, {}, {}, system.encode(system.task.x))).detach()))
    assert losses[0] == pytest.approx(5 * losses[1])


def test_critic_that_reads_labels_in_a_batch_without_any_on_one_side():
    system = made(CMAE, labels=True, options={"conditional_adversary": True})
    system.task.labels["a"][:] = -1
    terms = system.step()
    assert float(terms["adversarial"].detach()) == 0
    terms["adversarial"].backward()
    # as in training: the latent cells do not train with the critic
    rows = {m: torch.arange(len(x)) for m, x in system.task.x.items()}
    z = {m: v.detach() for m, v in system.encode(system.task.x).items()}
    loss = system.critic_loss(Batch(0, rows, {}, z))
    assert float(loss.detach()) == 0
    loss.backward()


def test_critic_that_reads_labels_needs_some():
    with pytest.raises(ValueError, match="`conditional_adversary` needs labels, and there are none"):
        made(CMAE, options={"conditional_adversary": True})
    assert made(CMAE, labels=True, options={"conditional_adversary": True}).critics["z"][0].in_features == 50 + 30


def test_rate_is_halved():
    system = made(CMAE)
    assert [system.schedule(step) for step in (0, 99_999, 100_000, 191_999)] == [1, 1, 0.5, 0.5]
    assert all(of.param_groups[0]["betas"] == (0.5, 0.999) for of in system.optimizers(1e-4))
