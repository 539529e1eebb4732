"""FedRSCLIP, pFedMoAP, FedTPG and FedVLP: formulas, and what travels between clients."""

from types import SimpleNamespace

import cloudpickle
import pytest
import torch
import torch.nn.functional as F

import fedray.testing as suite
from fedray.errors import BadInput
from fedray.method import parameters, split
from fedray.methods.fedrsclip import dpac, fedrsclip
from fedray.methods.fedtpg import fedtpg
from fedray.methods.fedvlp import fedvlp
from fedray.methods.pfedmoap import pfedmoap
from fedray.methods.promptfl import promptfl
from fedray.nn import backbone
from fedray.nn.generate import Once, bare, name_features, peer_features
from fedray.nn.task import build_task
from fedray.recipe import Recipe
from fedray.testing import build, images
from fedray.testing import given as alone
from fedray.types import Features, TextPrompts

CLIP = backbone.tiny()
PLAIN = Recipe(pfedmoap, n_ctx=4)


def given(method, count=0, seed=3, **changes):
    """What a client has that received the shared parameters of `count` others."""
    draw = torch.Generator().manual_seed(seed)
    shared, _ = split(parameters(method), method.private)
    others = [{n: v + 0.3 * torch.randn(v.shape, generator=draw) for n, v in shared.items()} for _ in range(count)]
    inbox = {f"peers/{k}/{name}": value for k, other in enumerate(others) for name, value in other.items()}
    return alone(CLIP, method)._replace(inbox=inbox, **changes)


def loss(method, frozen):
    x, y = images(CLIP, method), torch.arange(suite.IMAGES) % 3
    return method.terms(frozen, x, y)


def unit(generator, *shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(generator)), dim=-1)


# FedRSCLIP: where the class stands


def test_fedrsclip_has_the_class_in_the_middle():
    middle, end = build(Recipe(fedrsclip), CLIP), build(Recipe(fedrsclip, position="end"), CLIP)
    assert parameters(middle)["prompts.shared.tokens"].shape[-2] == 4
    x = images(CLIP, middle)
    assert not torch.allclose(middle(given(middle), x).logits, end(given(end), x).logits)


# FedRSCLIP: the constraint


@pytest.mark.parametrize("others", [1, 4])
def test_eq_9_and_10_by_hand(others):
    own, shared, rest = unit(0, 5, 8), unit(1, 5, 8), unit(2, others, 5, 8)
    phi = (own * shared).sum() / 5
    gaps = torch.stack([10 * (own * one).sum() / 5 - 10 * phi for one in rest])
    positive, negative = (own * shared).sum(-1), (own * rest).sum(-1)
    assert torch.allclose(dpac(positive, negative), torch.log(1 + gaps.exp().sum()), atol=1e-5)
    printed = -torch.log((10 * phi).exp() / torch.stack([(10 * (own * one).sum() / 5).exp() for one in rest]).sum())
    assert torch.allclose(dpac(positive, negative, bounded=False), printed, atol=1e-5)


def test_equal_prompts_of_n_clients_cost_log_n():
    method = build(Recipe(fedrsclip, lambda_a=2.0), CLIP)
    shared = parameters(method)["prompts.shared.tokens"]
    g = given(method)._replace(inbox={f"peers/{k}/prompts.shared.tokens": shared for k in range(4)})
    assert loss(method, g)["dpac"].item() == pytest.approx(2 * torch.log(torch.tensor(5.0)).item(), abs=1e-4)


@pytest.mark.parametrize("form", ["eq9", "eq10"])
@pytest.mark.parametrize("negatives", ["others", "none", "classes"])
@pytest.mark.parametrize("count", [0, 3])
def test_the_constraint_falls_when_private_comes_to_shared(form, negatives, count):
    method = build(Recipe(fedrsclip, form=form, negatives=negatives), CLIP)
    g, (align,) = given(method, count), method.penalties
    shared, own = torch.linalg.qr(unit(1, CLIP.arch.joint, 6))[0].T.split(3)  # orthogonal: only the positive moves much
    values, x, y = [], images(CLIP, method), torch.zeros(suite.IMAGES, dtype=torch.long)
    for t in torch.linspace(0, 1, 6):
        text = Features(torch.stack([shared, (1 - t) * own + t * shared]))
        values.append(align(method, g, x, y, SimpleNamespace(text=text))["dpac"].item())
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 1e-2


def test_other_classes_as_negatives_are_a_cross_entropy():
    method = build(Recipe(fedrsclip, negatives="classes", kappa=3.0), CLIP)
    text = method(given(method), images(CLIP, method)).text.pooled
    logits = 3 * F.normalize(text[1], dim=-1) @ F.normalize(text[0], dim=-1).mT
    assert torch.allclose(loss(method, given(method))["dpac"], F.cross_entropy(logits, torch.arange(3)), atol=1e-5)


def test_a_single_class_has_no_other_to_stay_away_from():
    method = build(Recipe(fedrsclip, negatives="classes", form="eq10"), CLIP)
    g = given(method)._replace(task=build_task(CLIP, ["cat"], ["a photo of a {}."]))
    value = method.terms(g, images(CLIP, method), torch.zeros(suite.IMAGES, dtype=torch.long))["dpac"]
    assert torch.isfinite(value)


@pytest.mark.parametrize("negatives", ["others", "none"])
def test_without_others_the_constraint_still_pulls(negatives):
    method = build(Recipe(fedrsclip, negatives=negatives), CLIP)
    g = given(method, 0 if negatives == "others" else 3)
    text = method(g, images(CLIP, method)).text.pooled
    similar = F.cosine_similarity(text[0], text[1], dim=-1).mean()
    assert torch.allclose(loss(method, g)["dpac"], F.softplus(-10 * similar), atol=1e-5)


def test_the_constraint_moves_both_prompts_and_not_the_others():
    method = build(Recipe(fedrsclip), CLIP)
    g = given(method, 3)
    inbox = {name: value.requires_grad_() for name, value in g.inbox.items()}
    value = loss(method, g._replace(inbox=inbox))["dpac"]
    gradients = torch.autograd.grad(value, [*method.parameters(), *inbox.values()], allow_unused=True)
    assert [g is not None and bool(g.abs().sum()) for g in gradients] == [True, True, False, False, False]
    assert not torch.equal(value, loss(method, given(method))["dpac"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"form": "eq11"}, "method.form is 'eq11'"),
        ({"negatives": "other"}, "method.negatives is 'other'. did you mean others"),
        ({"lambda_a": -1.0}, "method.lambda_a must be >= 0, got -1"),
        ({"kappa": 0.0}, "method.kappa must be > 0, got 0; lambda_a=0 leaves the constraint out"),
    ],
)
def test_fedrsclip_refuses(options, text):
    with pytest.raises(BadInput, match="(?i)" + text):
        build(Recipe(fedrsclip, **options), CLIP)


# pFedMoAP: the gate


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["pfedmoap", "fedrsclip"])
def test_the_contract_holds_with_others_prompts(name, check, monkeypatch):
    monkeypatch.setattr(suite, "given", lambda clip, method, task=0: crowded(method, task))
    check(Recipe(name), CLIP)


def crowded(method, task):
    return alone(CLIP, method, task)._replace(inbox=given(method, 2).inbox)


def test_the_gate_by_hand():
    method = build(Recipe(pfedmoap, n_ctx=4, heads=2, gate=6, lambda_local=0.25), CLIP)
    g, x = given(method, 3), images(CLIP, method)
    out, weights = method(g, x), parameters(method)
    assert out.text.pooled.shape == (4, 3, CLIP.arch.joint)
    texts, picture = F.normalize(out.text.pooled, dim=-1)[..., ::4], F.normalize(x.pooled, dim=-1)[..., ::4]  # 24 -> 6
    (wq, wk, wv), (bq, bk, bv) = weights["gate.into.weight"].chunk(3), weights["gate.into.bias"].chunk(3)
    b, c = 5, 2
    q, keys, values = picture[b] @ wq.T + bq, texts[:, c] @ wk.T + bk, texts[:, c] @ wv.T + bv
    heads = [(10 * keys[:, h] @ q[h]).softmax(0) @ values[:, h] for h in (slice(0, 3), slice(3, 6))]
    mixed = torch.cat(heads) @ weights["gate.out.weight"].T + weights["gate.out.bias"]
    own = F.normalize(x.pooled, dim=-1)[b] @ F.normalize(out.text.pooled, dim=-1)[0, c]
    assert out.logits[b, c].item() == pytest.approx(
        (CLIP.logit_scale * (own / 4 + picture[b] @ mixed)).item(), abs=1e-4
    )


def test_the_order_of_experts_does_not_matter():
    method = build(PLAIN, CLIP)
    g, x = given(method, 4), images(CLIP, method)
    turned = g._replace(inbox=dict(reversed(g.inbox.items())))
    assert torch.allclose(method(g, x).logits, method(turned, x).logits, atol=1e-4)


def test_the_gate_rests_without_experts_and_experts_are_constants():
    method = build(PLAIN, CLIP)
    gate = list(method.gate.parameters())
    g = given(method, 2)
    for value in g.inbox.values():
        value.requires_grad_()
    with_experts = torch.autograd.grad(loss(method, g)["loss"], [*gate, *g.inbox.values()], allow_unused=True)
    assert [v is not None for v in with_experts] == [True] * len(gate) + [False] * 2
    without = torch.autograd.grad(loss(method, given(method))["loss"], gate, allow_unused=True)
    assert without == (None,) * len(gate)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"gate": 25}, "method.gate must be 1 to 24"), ({"heads": 7}, "method.heads must divide the gate's 24 channels")],
)
def test_pfedmoap_refuses(options, text):
    with pytest.raises(BadInput, match=text):
        build(Recipe(pfedmoap, n_ctx=4, **options), CLIP)


# what comes in the inbox, and how often it is encoded


def test_peers_are_encoded_as_their_owners_do():
    method = build(Recipe(promptfl, n_ctx=4, position="middle"), CLIP)
    g = given(method, 3)
    got = peer_features(g, "prompts.tokens", "middle")
    for one, sent in zip(got, g.inbox.values(), strict=True):
        own = CLIP.encode_text(g.task, TextPrompts(sent[None], "middle")).pooled[0]
        assert torch.allclose(one, own, atol=1e-5)
    assert peer_features(g, "tokens") is None
    assert peer_features(g._replace(inbox={}), "prompts.tokens") is None


def test_frozen_features_are_made_once_a_visit():
    calls = []

    def features(frozen):
        calls.append(1)
        return name_features(frozen)

    once, method = Once(features), build(PLAIN, CLIP)
    g = given(method, 2)
    assert torch.equal(once(g), once(g._replace(view="global")))
    assert len(calls) == 1
    once(g._replace(inbox=dict(g.inbox)))
    once(g._replace(task=alone(CLIP, method, 1).task))
    once(g._replace(clip=backbone.tiny(1)))
    assert len(calls) == 4
    assert cloudpickle.loads(cloudpickle.dumps(Once(name_features))).seen is None
    method(g, images(CLIP, method))
    assert method.experts.seen is not None
    assert cloudpickle.loads(cloudpickle.dumps(method)).experts.seen is None


def test_another_inbox_is_another_mixture():
    method = build(PLAIN, CLIP)
    x = images(CLIP, method)
    first, second, again = (method(given(method, 2, seed=s), x).logits for s in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=1e-3)


# FedTPG and FedVLP


def test_bare_names_are_what_the_tokenizer_makes_of_them():
    names = ["cat", "big cat", "st. bernard", "mk2"]
    task = build_task(CLIP, names, ["a photo of a {}."])
    assert torch.equal(bare(task), CLIP.tokenize(names))
    g = alone(CLIP, build(Recipe(fedtpg), CLIP))
    for some in (names, ["impala (antelope)", "cat", "pink-yellow dahlia?"]):  # ")." and "?." are one token each
        want = F.normalize(CLIP.encode_tokens(CLIP.tokenize(some)), dim=-1)
        got = name_features(g._replace(task=build_task(CLIP, some, ["a photo of a {}."])))
        assert torch.allclose(got, want, atol=1e-6)


def test_the_generator_by_hand():
    method = build(Recipe(fedtpg), CLIP)
    g, p = alone(CLIP, method), method.prompts
    e = F.layer_norm(name_features(g), (24,))
    q = F.layer_norm(p.queries, (32,))
    a = p.attention
    (bq, bk, bv), heads = a.in_proj_bias.chunk(3), []
    queries, keys, values = q @ a.q_proj_weight.T + bq, e @ a.k_proj_weight.T + bk, e @ a.v_proj_weight.T + bv
    for i in range(4):
        h = slice(8 * i, 8 * i + 8)
        heads.append((queries[:, h] @ keys[:, h].T / 8**0.5).softmax(-1) @ values[:, h])
    mixed = a.out_proj(torch.cat(heads, -1))
    left, right = p.widen(F.layer_norm(mixed, (32,))).chunk(2, -1)
    want = mixed + p.narrow(left * F.gelu(right))
    assert torch.allclose(p(g, images(CLIP, method)).text.tokens[0, 0, 0], want, atol=1e-5)


def test_the_generator_follows_the_names_and_not_their_order():
    method = build(Recipe(fedtpg), CLIP)
    g, x = alone(CLIP, method), images(CLIP, method)
    other = alone(CLIP, method, 1)
    turned = g._replace(task=build_task(CLIP, suite.NAMES[0][::-1], ["a photo of a {}."]))
    one, two, three = (method.prompts(v, x).text.tokens for v in (g, other, turned))
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.allclose(method(g, x).logits.flip(1), method(turned, x).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_ctx": 0}, "n is 0; the text tower takes 1 to 16 context tokens"),
        ({"depth": 3}, "depth is 3; the text tower has 2 layers"),
        ({"heads": 5}, "heads is 5; it must divide the text tower's width, 32"),
    ],
)
def test_fedtpg_refuses(options, text):
    with pytest.raises(BadInput, match=text):
        build(Recipe(fedtpg, **options), CLIP)


def test_a_generated_context_can_be_deep():
    method = build(Recipe(fedtpg, depth=2, n_ctx=3), CLIP)
    assert method.prompts(alone(CLIP, method), images(CLIP, method)).text.tokens.shape == (1, 1, 2, 3, 32)


@pytest.mark.parametrize("depth", [1, 2])
def test_fedvlp_shares_prompts_of_both_towers(depth):
    method = build(Recipe(fedvlp, depth=depth), CLIP)
    sizes = {name: tuple(value.shape) for name, value in parameters(method).items()}
    assert sizes == {"prompts.text.tokens": (1, depth, 4, 32), "prompts.image.tokens": (depth, 4, 48)}
    prompts = method.prompts(alone(CLIP, method), images(CLIP, method))
    assert (prompts.vision.place, prompts.vision.stage) == ("end", "post_ln")
    assert method.private == ()
    assert method.needs == "pixels"
