"""Methods that live on a server's rule, and the whole network that prompts are compared with."""

import logging

import pytest
import torch
import torch.nn.functional as F

from fedray.build import build as build_experiment
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.fed.loop import Inline, rounds
from fedray.method import load, parameters, split
from fedray.nn import backbone
from fedray.nn.losses import asymmetric
from fedray.recipe import Recipe
from fedray.testing import CHECKS, build, given, images
from fedray.track import checkpoint
from fedray.types import Features

CLIP = backbone.tiny()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
FEDBN = Recipe("fedavg", network="efficientnet_b1", private_norm=True)


def made(name, **options):
    method = build(Recipe(name, **options), CLIP)
    return method, given(CLIP, method), images(CLIP, method)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.slow
def test_fedbn_keeps_the_contract(check):
    check(FEDBN, CLIP)


def test_dp2fl_compares_with_the_sum_of_unit_features():
    method, g, x = made("dp2fl", n_ctx=4)
    halves = [half(g, x).text for half in (method.student.prompts.shared, method.student.prompts.local)]
    text = sum(F.normalize(CLIP.encode_text(g.task, half).pooled[0], dim=-1) for half in halves)
    wanted = CLIP.logit_scale * F.normalize(x.pooled, dim=-1) @ F.normalize(text, dim=-1).T
    assert torch.allclose(method(g, x).logits, wanted, atol=1e-4)


def test_dp2fl_shares_both_prompts_and_sees_both_in_either_view():
    method, g, x = made("dp2fl", n_ctx=4)
    shared, private = split(parameters(method), method.private)
    assert not private
    assert {n: v.numel() for n, v in shared.items()} == {
        f"student.prompts.{half}.tokens": 4 * CLIP.arch.text.width for half in ("shared", "local")
    }
    local, everyone = (method(g._replace(view=view), x).logits for view in ("local", "global"))
    assert torch.equal(local, everyone)
    load(method, shared | {n: v.flip(-1) for n, v in shared.items() if ".local." in n})
    assert not torch.allclose(method(g._replace(view="global"), x).logits, local)


def test_dp2fl_of_two_equal_prompts_is_promptfl():
    method, g, x = made("dp2fl", n_ctx=4)
    plain, _, _ = made("promptfl", n_ctx=4)
    (tokens,) = parameters(plain).values()
    load(method, dict.fromkeys(parameters(method), tokens))
    assert torch.allclose(method(g, x).logits, plain(g, x).logits, atol=1e-4)


def test_fedawa_is_promptfl_at_the_clients():
    (method, g, x), (plain, _, _) = made("fedawa", n_ctx=4), made("promptfl", n_ctx=4)
    assert torch.equal(method(g, x).logits, plain(g, x).logits)
    assert (method.server, plain.server) == ("fedawa", None)


def test_fedawa_ofl_is_guided_and_scales_both_terms_for_several_labels():
    method, g, x = made("fedawa_ofl", weight=2.0)
    out, near = method(g, x), method.terms(g, x, LABELS)
    away = 2 * (1 - F.cosine_similarity(out.text.pooled[0], g.task.zeroshot).mean())
    assert torch.allclose(near["loss"], F.cross_entropy(out.logits, LABELS))
    assert torch.allclose(near["guidance"], away)
    y = torch.nn.functional.one_hot(LABELS, 3).to(torch.int8)
    several = method.terms(g, x, y)
    assert torch.allclose(several["loss"], asymmetric(out.logits, y, weight=0.02))
    assert torch.allclose(several["guidance"], 0.02 * away)
    assert (method.server, method.weighting) == ("outliers", "uniform")


def test_fedawa_ofl_refuses_a_negative_weight():
    with pytest.raises(BadInput, match=r"method\.weight is -1"):
        made("fedawa_ofl", weight=-1.0)


def test_a_network_shares_all_of_its_numbers():
    method, _, _ = made("fedavg", network="efficientnet_b1")
    shared, private = split(parameters(method), method.private)
    assert not private
    counts = [name for name, value in shared.items() if not value.is_floating_point()]
    assert counts
    assert all(name.endswith("num_batches_tracked") for name in counts)
    assert sum(p.numel() for p in method.parameters()) == 6_552_895 - 28 * 1281  # 31 classes, less 28


def test_fedbn_keeps_batch_norms_and_nothing_else():
    method = build(FEDBN, CLIP)
    shared, private = split(parameters(method), method.private)
    kinds = {name.rsplit(".", 1)[1] for name in private}
    assert kinds == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert all(".bn." in name for name in private)
    norms = sum(isinstance(part, torch.nn.BatchNorm2d) for part in method.modules())
    assert len(private) == 5 * norms
    assert not any(".bn." in name or "running" in name for name in shared)


def test_statistics_move_in_training_alone():
    method, g, x = made("fedavg", network="efficientnet_b1")
    before = parameters(method)
    method(g, x)
    assert all(torch.equal(value, before[n]) for n, value in parameters(method).items())
    method.terms(g, x, LABELS)
    moved = {n.rsplit(".", 1)[1] for n, value in parameters(method).items() if not torch.equal(value, before[n])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    scored = parameters(method)
    method(g, x)  # after training: back to what was learned
    assert all(torch.equal(value, scored[n]) for n, value in parameters(method).items())


@pytest.mark.parametrize("network", ["vit_tiny", "efficientnet_b1"])
def test_the_last_batch_may_be_one_image(network):
    method, g, x = made("fedavg", network=network)
    loss = method.terms(g, x[:1], LABELS[:1])["loss"]
    slopes = torch.autograd.grad(loss, list(method.parameters()))
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_nothing_is_drawn_in_training():
    method, g, x = made("fedavg")
    state = torch.get_rng_state()
    first = method.terms(g, x, LABELS)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(method.terms(g, x, LABELS)["loss"], first)


def test_a_random_start_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING, "fedray"):
        made("fedavg")
    assert "vit_tiny starts from random weights, papers start from ImageNet's" in caplog.text


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda: made("fedavg", private_norm=True), "method.private_norm keeps batch norms, vit_tiny has none"),
        (lambda: made("fedavg", network="resnet"), "network 'resnet' is unknown"),
    ],
)
def test_networks_that_do_not_fit_are_refused(act, text):
    with pytest.raises(BadInput, match=text):
        act()


def test_features_are_no_pixels():
    method, g, _ = made("fedavg")
    with pytest.raises(BadInput, match="a whole network reads pixels"):
        method(g, Features(torch.zeros(1, CLIP.arch.joint)))


class Unscored(Inline):
    """Trains alone: scoring a network on all of the digits takes longer than all else here."""

    def score(self, jobs):
        return iter(())


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fedavg", "method.network": "efficientnet_b1"},
        {"method": "fedavg", "method.network": "efficientnet_b1", "method.private_norm": True},
        {"method": "dp2fl", "method.n_ctx": 4},
    ],
    ids=["fedavg", "fedbn", "dp2fl"],
)
def test_a_run_resumes_from_its_checkpoint(changes, tmp_path):
    """Batch norms' statistics and counts, private ones, mixtures: the second round is the same after a restart."""
    common = {"clip.name": "tiny", "partition.clients": 2, "rounds": 2, "split.shots": 1, "local.lr": 0.01}
    built = build_experiment(Experiment().override(**common, **changes), cache=tmp_path / "cache")
    settings = {"clients": built.clients, "total": 2, "seed": 0, "evaluate_every": 2}
    executor = Unscored(built.setup, tmp_path / "private")
    iterator = rounds(built.shared, built.server, executor, **settings)
    first = next(iterator)
    held = executor.save(1)
    (tmp_path / "journal").write_bytes(b"")
    checkpoint.write(tmp_path, first, checkpoint.Mark(1), held)
    through = next(iterator)
    read, manifest, _, _ = checkpoint.read(checkpoint.found(tmp_path)[0], tmp_path / "journal")
    assert {n: v.dtype for n, v in read.state.items()} == {n: v.dtype for n, v in first.state.items()}
    again = Unscored(built.setup, tmp_path / "private")
    again.load(1, manifest)
    (resumed,) = rounds(built.shared, built.server, again, resume=read, **settings)
    assert all(torch.equal(value, resumed.shared[name]) for name, value in through.shared.items())
    assert [r for r in through.rows if "time" not in r.metric] == [r for r in resumed.rows if "time" not in r.metric]
