"""One client: trains on its own images, sends what is shared, keeps what is private."""

import numpy as np
import pytest
import torch

from fedray.fed.client import Diverged, factor, fit, open_world, score, threads
from fedray.fed.clients import Clients
from fedray.fed.local import Local
from fedray.method import load, parameters, split
from fedray.types import GLOBAL, Given, Job


def parts(world):
    return split(world.initial, world.method.private)


def test_fit_returns_shared_and_keeps_private(world):
    shared, private = parts(world)
    result, kept = fit(world, Job(1, 0, shared), private)
    assert result.shared.keys() == shared.keys()
    assert kept.keys() == private.keys()
    assert result.n == len(world.setup.shards[0])
    assert result.metrics["train/loss"] > 0
    assert not torch.equal(kept["prompts.local.tokens"], private["prompts.local.tokens"])


def test_a_client_is_not_touched_by_another(world):
    shared, private = parts(world)
    alone, kept = fit(world, Job(1, 0, shared), private)
    fit(world, Job(1, 1, shared), private)
    again, kept_again = fit(world, Job(1, 0, shared), private)
    assert all(torch.equal(v, again.shared[n]) for n, v in alone.shared.items())
    assert all(torch.equal(v, kept_again[n]) for n, v in kept.items())
    assert alone.metrics == again.metrics


def test_it_is_plain_sgd(made):
    """One client, one step: theta - lr * (grad + wd * theta), by hand."""
    experiment, built = made(**{"method": "promptfl", "local.batch": 1000, "local.momentum": 0.0})
    world = open_world(built.setup)
    shared, _ = parts(world)
    result, _ = fit(world, Job(1, 0, shared), {})
    setup = world.setup
    order = setup.shards[0]
    method = open_world(setup).method
    x, y = setup.train.take(order), torch.from_numpy(setup.train.labels[order])
    from fedray.types import Given

    loss = torch.nn.functional.cross_entropy(method(Given(world.clip, setup.task), x).logits, y)
    (gradient,) = torch.autograd.grad(loss, list(method.parameters()))
    theta = shared["prompts.tokens"]
    expected = theta - experiment.local.lr * (gradient + experiment.local.weight_decay * theta)
    assert torch.allclose(result.shared["prompts.tokens"], expected, atol=2e-6)


def test_the_learning_rate_may_follow_a_cosine(made):
    local = made(**{"local.schedule": "cosine", "local.lr": 0.2})[0].local
    assert local.rate(1, 4) == pytest.approx(0.2)
    assert local.rate(3, 4) == pytest.approx(0.1)
    assert local.rate(4, 4) > 0


def test_a_loss_that_is_not_finite_names_round_client_and_remedy(world):
    shared, private = parts(world)
    broken = {n: torch.full_like(v, torch.nan) for n, v in shared.items()}
    with pytest.raises(Diverged, match=r"round 3, client 1: prompts.shared.tokens not finite \(.*\); lower local.lr"):
        fit(world, Job(3, 1, broken), private)


def test_divergence_of_a_cosine_head(made):
    world = open_world(made(**{"method": "promptfl", "local.lr": 1e30})[1].setup)
    with pytest.raises(
        Diverged, match=r"round 1, client 0: the loss is not finite \(loss .*\); lower local.lr \(now 1e"
    ):
        result, _ = fit(world, Job(1, 0, parts(world)[0]), {})
        fit(world, Job(1, 0, result.shared), {})


def test_scores_count_what_they_say(world):
    shared, private = parts(world)
    own = score(world, Job(1, 2, shared), private)
    everyone = score(world, Job(1, GLOBAL, shared), {})
    assert own.n == len(world.setup.tests[2])
    assert everyone.n == len(world.setup.test.labels)
    assert (own.metrics["acc1"] * own.n / 100) == pytest.approx(round(own.metrics["acc1"] * own.n / 100))


def test_the_global_view_ignores_private_values(world):
    shared, private = parts(world)
    moved = {n: v + 1 for n, v in private.items()}
    assert score(world, Job(1, GLOBAL, shared), private) == score(world, Job(1, GLOBAL, shared), moved)
    assert score(world, Job(1, 0, shared), private) != score(world, Job(1, 0, shared), moved)


def test_a_client_without_test_images_scores_nothing(world):
    shared, private = parts(world)
    tests = (np.array([], dtype=int), *world.setup.tests[1:])
    empty = world._replace(setup=world.setup._replace(tests=tests))
    assert score(empty, Job(1, 0, shared), private)[2:] == (0, {}, "")


def test_repeating_a_round_gives_the_same_bytes(made, tmp_path):
    """The step starts from the version before its round: a retried call changes nothing."""
    clients = Clients(made()[1].setup, tmp_path / "private")
    shared, _ = parts(clients.world)
    first = [next(clients.fit([Job(r, 0, shared)])) for r in (1, 2)]
    again = next(clients.fit([Job(2, 0, shared)]))
    assert all(torch.equal(v, again.shared[n]) for n, v in first[1].shared.items())
    assert clients.vault.versions(0) == [1, 2]


def test_private_states_survive_the_process(made, tmp_path):
    setup = made()[1].setup
    shared, _ = parts(open_world(setup))
    one = Clients(setup, tmp_path / "private")
    list(one.fit([Job(1, 0, shared)]))
    one.vault.save(1)
    expected = next(one.fit([Job(2, 0, shared)]))
    other = Clients(setup, tmp_path / "private")  # as after a crash
    got = next(other.fit([Job(2, 0, shared)]))
    assert all(torch.equal(v, got.shared[n]) for n, v in expected.shared.items())


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_step_is_torchs_own_sgd_to_the_bit():
    local = Local(lr=0.1, momentum=0.9, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    optimiser = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    momenta = [None, None]
    for step in range(5):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        gradients[1] = None if step == 2 else gradients[1]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g
        optimiser.step()
        local.step(ours, gradients, momenta, [0.1, 0.1])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_each_parameter_steps_at_its_own_rate():
    local = Local(lr=0.1, momentum=0.9, weight_decay=0.01)
    ours = [torch.ones(2), torch.ones(2), torch.ones(2)]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    groups = [{"params": [theirs[0], theirs[2]], "lr": 0.1}, {"params": [theirs[1]], "lr": 0.5}]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    momenta = [None] * 3
    for step in range(3):
        gradients = [torch.full((2,), float(step + i)) for i in range(3)]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g
        optimiser.step()
        local.step(ours, gradients, momenta, [0.1, 0.5, 0.1])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_first_pattern_that_matches_gives_the_factor():
    rates = {"gate.out.*": 2.0, "gate.*": 5.0}
    assert [factor(rates, name) for name in ("gate.out.bias", "gate.into", "prompts.tokens")] == [2.0, 5.0, 1.0]


def test_a_client_may_train_against_its_own_classes_alone(made):
    """With own classes, logits are over those alone: the loss of the first step is that of the smaller task."""
    changes = {"method": "promptfl", "partition.alpha": 0.01, "local.batch": 100}
    (_, whole), (_, own) = made(**changes), made(**changes, **{"local.label_space": "own"})
    world = open_world(own.setup)
    client = own.clients[0]
    shard = own.setup.shards[client]
    y = torch.from_numpy(own.setup.train.labels[shard])
    classes = y.unique()
    assert len(classes) < 10
    given = Given(world.clip, world.setup.task.take(classes))
    load(world.method, parameters(whole.setup.method))
    logits = world.method(given, world.setup.train.take(shard)).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.searchsorted(classes, y)).item()
    result, _ = fit(world, Job(1, client, own.shared), {})
    assert result.metrics["train/loss"] == pytest.approx(expected, rel=1e-6)
    every, _ = fit(open_world(whole.setup), Job(1, client, whole.shared), {})
    assert every.metrics["train/loss"] > result.metrics["train/loss"]
