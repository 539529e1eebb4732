"""Backbone against open_clip itself, and against prompts written into open_clip's own blocks by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedray.errors import BadInput, Unavailable
from fedray.nn import backbone, weights
from fedray.nn.architecture import Architecture, architecture
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task
from fedray.types import Features, Task, TextPrompts, VisionPrompts

Both = tuple[CLIP, Backbone]
Config = Callable[..., dict[str, Any]]


@pytest.fixture
def slow_path() -> Any:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def texts(clip: Backbone, words: list[str]) -> Tensor:
    return clip.tokenize(words)


# ---- as pretrained


@pytest.mark.parametrize("quick", [False, True])
@torch.no_grad()
def test_towers_have_open_clips_bits(pair: Any, quick: bool, images: Tensor) -> None:
    model, clip = pair(quick_gelu=quick)
    ids = texts(clip, ["a photo of a cat", "dog", "an aerial view of the harbour"])
    assert torch.equal(
        ids, open_clip.SimpleTokenizer(context_length=20)(["a photo of a cat", "dog", "an aerial view of the harbour"])
    )
    assert torch.equal(clip.encode_tokens(ids, full_context=True), model.encode_text(ids))
    assert torch.equal(clip.encode_image(images).pooled, model.encode_image(images))
    assert torch.equal(clip.logit_scale, model.logit_scale.exp())
    torch.testing.assert_close(clip.encode_tokens(ids), model.encode_text(ids), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_the_fast_path_texts_keep_their_bits_and_images_round(
    both: Both, images: Tensor, slow_path: None
) -> None:
    model, clip = both
    ids = texts(clip, ["a photo of a cat", "dog"])
    assert torch.equal(clip.encode_tokens(ids, full_context=True), model.encode_text(ids))
    torch.testing.assert_close(clip.encode_image(images).pooled, model.encode_image(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_patch_tokens_are_the_normed_projected_outputs(both: Both, images: Tensor) -> None:
    model, clip = both
    v = model.visual
    expected = v.ln_post(v.transformer(v._embeds(images)))[:, 1:] @ v.proj
    out = clip.encode_image(images, tokens="patches")
    assert out.tokens is not None and out.tokens.shape == (3, 9, 24)
    torch.testing.assert_close(out.tokens, expected, rtol=0, atol=1e-5)
    assert clip.encode_image(images).tokens is None


def test_frozen_and_in_eval_mode(clip: Backbone) -> None:
    assert not clip.training
    assert not any(p.requires_grad for p in clip.parameters())
    assert not any(p.is_meta for p in [*clip.parameters(), *clip.buffers()])


@pytest.mark.slow
@torch.no_grad()
def test_full_size_has_open_clips_bits() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model("ViT-B-16-quickgelu").eval()
    clip = backbone.load("ViT-B/16-quickgelu", seed=3)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ids = clip.tokenize(["a photo of a cat", "a satellite photo of annual crop land"])
    assert torch.equal(clip.encode_image(x).pooled, model.encode_image(x))
    assert torch.equal(clip.encode_tokens(ids, full_context=True), model.encode_text(ids))


def test_preprocess_normalises(clip: Backbone) -> None:
    x = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(clip.arch.mean)) / torch.tensor(clip.arch.std)
    torch.testing.assert_close(clip.preprocess(x)[0, :, 5, 7], expected)


# ---- prompts, against a hand-made forward pass on open_clip's blocks


def by_hand(model: CLIP, clip: Backbone, name: str, prompts: TextPrompts, n: int, c: int) -> tuple[Tensor, Tensor]:
    """One prompt of one class, token after token, at full context length: (pooled (d,), all tokens (L, d))."""
    p = prompts.tokens[n, c if prompts.tokens.shape[1] > 1 else 0]
    word = [("w", i) for i in clip.encode(name)]
    rest = [("w", i) for i in clip.encode(f"{name}.")[len(word) :]] + [("w", 49407)]
    fixed = [] if prompts.words is None else [("w", int(i)) for i in prompts.words]
    context = [("c", i) for i in range(p.shape[1])]
    half = len(context) // 2
    body = {
        "end": context + fixed + word,
        "middle": context[:half] + word + context[half:] + fixed,
        "front": word + context + fixed,
    }[prompts.position]
    line = [("w", 49406), *body, *rest]
    end = len(line) - 1
    line += [("w", 0)] * (20 - len(line))
    rows = {i: at for at, (kind, i) in enumerate(line) if kind == "c"}
    x = torch.stack([p[0, i] if kind == "c" else model.token_embedding.weight[i] for kind, i in line])
    x = (x + model.positional_embedding)[None]
    for i, block in enumerate(model.transformer.resblocks):
        if 0 < i < len(p):
            x = torch.stack([p[i, line[at][1]] if at in rows.values() else x[0, at] for at in range(20)])[None]
        x = block(x, attn_mask=model.attn_mask)
    out = (model.ln_final(x) @ model.text_projection)[0]
    return out[end], out


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("words", [None, [320, 1125]])
def test_text_prompts_stand_where_they_should(both: Both, task: Task, position: Any, depth: int, words: Any) -> None:
    model, clip = both
    fixed = None if words is None else torch.tensor(words)
    prompts = TextPrompts(torch.randn(2, 1, depth, 3, 32), position, fixed)
    out = clip.encode_text(task, prompts, tokens=True)
    assert out.pooled.shape == (2, 4, 24)
    assert out.tokens is not None
    length = out.tokens.shape[2]
    for n in range(2):
        for c, name in enumerate(task.names):
            pooled, tokens = by_hand(model, clip, name, prompts, n, c)
            torch.testing.assert_close(out.pooled[n, c], pooled, rtol=0, atol=2e-5)
            torch.testing.assert_close(out.tokens[n, c], tokens[:length], rtol=0, atol=2e-5)


def test_contexts_of_each_class_differ(both: Both, task: Task) -> None:
    model, clip = both
    prompts = TextPrompts(torch.randn(2, 4, 2, 3, 32), "middle")
    out = clip.encode_text(task, prompts).pooled
    for c, name in enumerate(task.names):
        torch.testing.assert_close(out[1, c], by_hand(model, clip, name, prompts, 1, c)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_cutting_the_padding_changes_nothing(clip: Backbone, task: Task, position: Any) -> None:
    tokens = torch.randn(2, 1, 3, 4, 32, requires_grad=True)
    probe = torch.randn(2, 4, 24)
    results = []
    for full in (False, True):
        out = clip.encode_text(task, TextPrompts(tokens, position), full_context=full, tokens=True)
        results.append((out.pooled, *torch.autograd.grad((out.pooled * probe).sum(), tokens), out.tokens))
    (cut, cut_grad, cut_tokens), (whole, whole_grad, whole_tokens) = results
    assert cut_tokens.shape[2] < whole_tokens.shape[2] == 20
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(cut_grad, whole_grad, rtol=1e-5, atol=1e-5)


def test_a_context_of_word_embeddings_is_the_written_sentence(clip: Backbone) -> None:
    ids = clip.encode("a photo of a")
    task = build_task(clip, ["cat", "dog"], ["a photo of a {}."])
    prompts = TextPrompts(clip.embed(torch.tensor(ids))[None, None, None])
    expected = clip.encode_tokens(clip.tokenize(["a photo of a cat.", "a photo of a dog."]))
    torch.testing.assert_close(clip.encode_text(task, prompts).pooled[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", ["end", "after_cls"])
@pytest.mark.parametrize("stage", ["pre_ln", "post_ln"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("per_image", [False, True])
def test_vision_prompts_stand_where_they_should(
    both: Both, images: Tensor, place: Any, stage: Any, depth: int, per_image: bool
) -> None:
    model, clip = both
    v, n = model.visual, 2
    p = torch.randn(3 if per_image else 1, depth, n, 48)
    x = v.conv1(images).reshape(3, 48, -1).permute(0, 2, 1)
    x = torch.cat([v.class_embedding.expand(3, 1, -1), x], 1) + v.positional_embedding
    line = [*range(1), *[-1] * n, *range(1, 10)] if place == "after_cls" else [*range(10), *[-1] * n]
    spots = [i for i, kind in enumerate(line) if kind < 0]
    kept = [i for i, kind in enumerate(line) if kind >= 0]

    def put(x: Tensor, layer: int) -> Tensor:
        x = x.clone()
        x[:, spots] = p[:, layer].expand(3, n, 48)
        return x

    wide = torch.zeros(3, len(line), 48)
    if stage == "pre_ln":
        wide[:, kept] = x
        wide = v.ln_pre(put(wide, 0))
    else:
        wide[:, kept] = v.ln_pre(x)
        wide = put(wide, 0)
    for i, block in enumerate(v.transformer.resblocks):
        wide = block(put(wide, i) if 0 < i < depth else wide)
    expected = (v.ln_post(wide) @ v.proj)[:, kept]
    out = clip.encode_image(images, VisionPrompts(p, place, stage), tokens="patches")
    torch.testing.assert_close(out.pooled, expected[:, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(out.tokens, expected[:, 1:], rtol=0, atol=2e-5)


def test_gradients_reach_every_layer_of_prompts_and_no_weight(clip: Backbone, task: Task, images: Tensor) -> None:
    text, vision = torch.randn(2, 1, 3, 2, 32, requires_grad=True), torch.randn(1, 3, 2, 48, requires_grad=True)
    out = clip.encode_image(images, VisionPrompts(vision), tokens="patches")
    assert out.tokens is not None
    (
        clip.encode_text(task, TextPrompts(text)).pooled.pow(2).sum() + out.pooled.pow(2).sum() + out.tokens.sum()
    ).backward()
    assert text.grad is not None and (text.grad.abs().amax((3, 4)) > 0).all()
    assert vision.grad is not None and (vision.grad.abs().amax((2, 3)) > 0).all()
    assert all(p.grad is None for p in clip.parameters())


def test_gradients_against_finite_differences(config: Config, both: Both, images: Tensor, task: Task) -> None:
    model, _ = both
    clip = backbone.from_state(architecture("small", config()), model.state_dict()).double()
    text = 0.5 * torch.randn(1, 1, 2, 2, 32, dtype=torch.float64).requires_grad_()
    vision = 0.5 * torch.randn(1, 2, 1, 48, dtype=torch.float64).requires_grad_()

    def f(text: Tensor, vision: Tensor) -> Tensor:
        t = clip.encode_text(task, TextPrompts(text, "middle")).pooled
        return t @ clip.encode_image(images[:1].double(), VisionPrompts(vision)).pooled.T

    assert f(text, vision).dtype == torch.float64
    assert torch.autograd.gradcheck(f, (text, vision), fast_mode=True)


def test_vmap_over_prompts_is_the_loop(clip: Backbone, task: Task, images: Tensor) -> None:
    text, vision = torch.randn(3, 2, 1, 2, 2, 32), torch.randn(3, 1, 2, 2, 48)

    def loss(text: Tensor, vision: Tensor) -> Tensor:
        t = clip.encode_text(task, TextPrompts(text, "middle")).pooled
        out = clip.encode_image(images, VisionPrompts(vision), tokens="patches")
        assert out.tokens is not None
        return torch.einsum("ncd,bd->", t, out.pooled) + out.tokens.pow(2).sum()

    for i, (a, b) in enumerate(zip(*vmap(grad(loss, argnums=(0, 1)))(text, vision), strict=True)):
        x, y = grad(loss, argnums=(0, 1))(text[i], vision[i])
        torch.testing.assert_close(a, x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b, y, rtol=1e-4, atol=1e-4)
    many = vmap(lambda t: clip.encode_text(task, TextPrompts(t)).pooled)(text)
    torch.testing.assert_close(many[2], clip.encode_text(task, TextPrompts(text[2])).pooled, rtol=0, atol=1e-5)


def test_functional_call_on_the_towers(clip: Backbone, images: Tensor) -> None:
    """The towers hold no state besides their weights."""
    weights_ = {name: p.double() for name, p in clip.vision.named_parameters()}
    out = functional_call(clip.vision, weights_, (images.double(),))
    torch.testing.assert_close(out.float(), clip.vision(images), rtol=0, atol=1e-4)


def test_bf16_is_close_returns_fp32_and_keeps_norms(config: Config, both: Both, task: Task, images: Tensor) -> None:
    model, clip = both
    low = backbone.from_state(architecture("small", config()), model.state_dict(), precision="bf16")
    assert {p.dtype for name, p in low.named_parameters() if ".ln_" not in name} == {torch.bfloat16}
    assert {p.dtype for name, p in low.named_parameters() if ".ln_" in name} == {torch.float32}
    tokens = torch.randn(1, 1, 2, 2, 32, requires_grad=True)
    a, b = (c.encode_text(task, TextPrompts(tokens)).pooled for c in (clip, low))
    grads = [torch.autograd.grad(f.sum(), tokens)[0].flatten() for f in (a, b)]
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    c, d = (k.encode_image(images, tokens="patches") for k in (clip, low))
    assert low.embed(torch.tensor([1])).dtype == b.dtype == d.pooled.dtype == torch.float32
    for exact, rounded in ((a, b), (c.pooled, d.pooled), (c.tokens, d.tokens)):
        assert exact is not None and rounded is not None
        assert torch.cosine_similarity(exact, rounded, dim=-1).min() > 0.999
    assert low.digest != clip.digest


# ---- what passes, what is refused


def test_without_prompts_the_zero_shot_features(clip: Backbone, task: Task) -> None:
    assert torch.equal(clip.encode_text(task).pooled, task.zeroshot[None])
    with pytest.raises(BadInput, match=r"text tokens without text prompts are not kept; give prompts"):
        clip.encode_text(task, tokens=True)


def test_features_pass_through(clip: Backbone) -> None:
    x = Features(torch.randn(2, 24), torch.randn(2, 9, 24).half())
    out = clip.encode_image(x, tokens="patches")
    assert out.pooled is x.pooled
    assert out.tokens is not None and x.tokens is not None and torch.equal(out.tokens, x.tokens.float())
    with pytest.raises(BadInput, match=r"cached features can't see vision prompts, .*; use pixels"):
        clip.encode_image(x, VisionPrompts(torch.zeros(1, 1, 1, 48)))
    with pytest.raises(BadInput, match=r"cached features hold no patch tokens; .*use pixels"):
        clip.encode_image(Features(x.pooled), tokens="patches")


def test_refusals_say_value_rule_and_remedy(clip: Backbone, task: Task, images: Tensor) -> None:
    long = TextPrompts(torch.zeros(1, 1, 1, 15, 32))
    with pytest.raises(
        BadInput,
        match=r"'Boeing 747' takes 7 tokens, with 15 .* 0 fixed .* makes 22, .* holds 20; take at most 13",
    ):
        clip.encode_text(task, long)
    with pytest.raises(BadInput, match=r"text prompts of width 31, the text tower has 32"):
        clip.encode_text(task, TextPrompts(torch.zeros(1, 1, 1, 2, 31)))
    with pytest.raises(BadInput, match=r"vision prompts of depth 4, the vision tower has 3 layers; lower the depth"):
        clip.encode_image(images, VisionPrompts(torch.zeros(1, 4, 1, 48)))
    with pytest.raises(BadInput, match=r"images of 16 x 16 pixels, small takes 24 x 24; resize them"):
        clip.encode_image(images[..., :16, :16])
    with pytest.raises(BadInput, match=r"text 'a a .*' takes 22 tokens, small holds 20; shorten it"):
        clip.tokenize(["a " * 20])
    with pytest.raises(BadInput, match=r"precision 'fp16' is unknown; take fp32"):
        backbone.tiny(precision="fp16")


# ---- names and weights


def test_random_weights_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, three = backbone.load("tiny", seed=1), backbone.load("tiny", seed=1), backbone.load("tiny", seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.digest == two.digest != three.digest
    assert torch.equal(one.vision.proj, two.vision.proj) and not torch.equal(one.vision.proj, three.vision.proj)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "its vision tower is a ModifiedResNet"),
        ("coca_ViT-B-32", "it is a CoCa model"),
        ("roberta-ViT-B-32", "its text tower is the Hugging Face model roberta-base"),
        ("ViT-B-16-SigLIP", "its vision tower is the timm model"),
        ("ViT-H-14-CLIPA", "it sets "),
        ("ViT-M-16-alt", "it sets ls_init_value="),
        ("ViT-H-14-worldwide", "it sets hf_tokenizer_name="),
    ],
)
def test_other_architectures_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=f"{name}' cannot take prompts: {reason}.*; choose a ViT with the classic text"):
        backbone.load(name)


def test_unknown_names_and_tags() -> None:
    with pytest.raises(BadInput, match=r"backbone 'ViT-B-16-quickgellu' is unknown. Did you mean ViT-B-16-quickgelu\?"):
        backbone.load("ViT-B-16-quickgellu")
    with pytest.raises(BadInput, match=r"backbone 'embeded' is unknown. Did you mean embedded\?"):
        backbone.load("embeded")
    with pytest.raises(
        BadInput, match=r"weights 'opnai' are neither a tag of ViT-B-16-quickgelu nor a file. Did you mean openai\?"
    ):
        backbone.load("ViT-B-16-quickgelu", "opnai")
    with pytest.raises(BadInput, match=r"weights 'openai' for 'embedded', which has its own; drop weights"):
        backbone.load("embedded", "openai")


def test_activation_must_be_the_one_that_was_trained() -> None:
    with pytest.raises(BadInput, match=r"^ViT-B-16 with weights 'openai' needs QuickGELU; use ViT-B-16-quickgelu$"):
        backbone.load("ViT-B/16", "openai")
    with pytest.raises(
        BadInput, match=r"^ViT-B-16-quickgelu with weights 'laion2b_s34b_b88k' needs plain GELU; use ViT-B-16$"
    ):
        backbone.load("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


def test_a_failed_download_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no route to host\nmore")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(
        Unavailable, match=r"'openai' of ViT-B-16-quickgelu could not be fetched \(no route to host\); connect once"
    ):
        backbone.load("ViT-B-16-quickgelu", "openai")


@pytest.fixture
def small_config(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(both: Both, tmp_path: Path, suffix: str, small_config: None) -> None:
    model, clip = both
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, path)
    else:
        save_file(model.state_dict(), path)
    loaded = backbone.load("ViT-small", str(path))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), clip.parameters(), strict=True))


def test_weights_that_do_not_fit(both: Both, tmp_path: Path, small_config: None) -> None:
    state, path = both[0].state_dict(), tmp_path / "w.safetensors"

    def attempt(changed: dict[str, Tensor]) -> Any:
        save_file(changed, path)
        return backbone.load("ViT-small", str(path))

    with pytest.raises(
        BadInput,
        match=r"tensor 'visual.proj' has shape \(48, 25\) in the weights, \(48, 24\) in ViT-small; give weights",
    ):
        attempt(state | {"visual.proj": torch.zeros(48, 25)})
    with pytest.raises(BadInput, match=r"have a tensor 'visual.extra' of shape \(2,\), ViT-small has none"):
        attempt(state | {"visual.extra": torch.zeros(2)})
    name = "transformer.resblocks.1.attn.in_proj_weight"
    with pytest.raises(BadInput, match=rf"have no tensor '{name}', ViT-small needs it with shape \(96, 32\)"):
        attempt({k: v for k, v in state.items() if k != name})


def test_missing_damaged_and_foreign_files(tmp_path: Path, small_config: None) -> None:
    with pytest.raises(Unavailable, match=r"none.pt does not exist; give an existing .safetensors or .pt file"):
        backbone.load("ViT-small", str(tmp_path / "none.pt"))
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(b"not weights at all")
        with pytest.raises(Unavailable, match=rf"bad{suffix} cannot be read \(.*\); fetch it again"):
            backbone.load("ViT-small", str(path))
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(BadInput, match=r"list.pt holds no state dict; save"):
        backbone.load("ViT-small", str(tmp_path / "list.pt"))


class Trap:
    def __reduce__(self) -> Any:
        return (Path("trapped").write_text, ("x",))


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: None) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, "trap.pt")
    with pytest.raises(Unavailable, match=r"cannot be read"):
        backbone.load("ViT-small", "trap.pt")
    assert not Path("trapped").exists()


# ---- the embedded backbone


@pytest.fixture
def assets(config: Config, tmp_path: Path) -> Path:
    """An embedded backbone as it is shipped, but random: fp16, a vocabulary of 60 ids."""
    ids = torch.tensor([0, *open_clip.SimpleTokenizer().encode("a photo of the digit one two three."), 49406, 49407])
    ids = ids.unique()
    cfg = config()
    cfg["text_cfg"]["vocab_size"] = len(ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = {k: v.half() for k, v in CLIP(**cfg).state_dict().items()}
    path = tmp_path / "embedded.safetensors"
    save_file(state | {"vocabulary": ids}, path)
    facts = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 24, "interpolation": "bicubic", "unknown": 1}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "embedded.json").write_text(json.dumps(cfg | facts | {"sha256": digest}))
    return tmp_path


def test_embedded_maps_clips_ids_to_its_own(assets: Path) -> None:
    arch, state, vocabulary = weights.read_embedded(assets)
    clip = backbone.from_state(arch, state, vocabulary=vocabulary)
    assert arch.mean == arch.std == (0.5, 0.5, 0.5) and arch.name == "embedded"
    ids = clip.tokenize(["A photo of the DIGIT one", "zebra three"])
    assert int(ids.max()) == arch.vocabulary - 1 == int(ids[0, 7])  # the end token has the last row
    kept = weights.read_foreign(assets / "embedded.safetensors")["vocabulary"]
    expected = open_clip.SimpleTokenizer(context_length=20)(["a photo of the digit one"])[0]
    assert torch.equal(kept[ids[0]], expected)
    assert ids[1, 1] == 1  # unknown
    assert torch.equal(clip.text.token_embedding.weight, state["token_embedding.weight"].float())


def test_embedded_damaged_or_missing(assets: Path) -> None:
    path = assets / "embedded.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unavailable, match=r"embedded backbone is damaged, its SHA-256 differs; re-install fedray"):
        weights.read_embedded(assets)
    path.unlink()
    with pytest.raises(Unavailable, match=r"embedded backbone cannot be read .*; re-install fedray"):
        weights.read_embedded(assets)


def test_the_embedded_backbone_comes_along() -> None:
    clip = backbone.load()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    task = build_task(clip, names, ["a photo of the digit {}."])
    assert len({tuple(row) for row in task.tokens.tolist()}) == 10  # every digit has a row of its own
    assert int(task.tokens.max()) == clip.arch.vocabulary - 1 and int(task.tokens[0, -1]) == 0
    assert task.zeroshot.isfinite().all()
    size = clip.arch.image_size
    assert clip.encode_image(torch.zeros(1, 3, size, size)).pooled.isfinite().all()


def test_tiny_tells_words_apart() -> None:
    clip = backbone.tiny()
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    ids = clip.tokenize(digits)
    assert len(ids[:, 1].unique()) == 10
    assert int(ids.max()) == clip.arch.vocabulary - 1
    assert ids.argmax(1).tolist() == [2] * 10


# ---- our own file

SECOND_PROCESS = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from fedray.nn import backbone, prompts, task
x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
for name in sys.argv[2:]:
    clip = backbone.open_file(Path(sys.argv[1]) / name)
    torch.save((clip.encode_image(x).pooled, clip.digest), Path(sys.argv[1]) / f"{name}.pt")
heavy = {"open_clip", "torchvision", "timm", "ray", "mlflow", "ot", "torch._dynamo"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_file_opens_in_another_process_without_open_clip_and_with_the_same_bits(tmp_path: Path) -> None:
    clips = {precision: backbone.tiny(precision=precision) for precision in ("fp32", "bf16")}
    for name, clip in clips.items():
        backbone.save(clip, tmp_path / name)
    command = [sys.executable, "-W", "error", "-c", SECOND_PROCESS, str(tmp_path), *clips]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for name, clip in clips.items():
        pooled, digest = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert torch.equal(pooled, clip.encode_image(x).pooled)
        assert digest == clip.digest


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    clip = backbone.tiny()
    backbone.save(clip, tmp_path / "clip.safetensors")
    again = backbone.open_file(tmp_path / "clip.safetensors")
    assert again.arch == clip.arch and torch.equal(again.logit_scale, clip.logit_scale)
    assert torch.equal(again.tokenize(["a cat"]), clip.tokenize(["a cat"]))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])
    assert [p.name for p in tmp_path.iterdir()] == ["clip.safetensors"]  # no temporary is left


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to list mappings")
def test_a_mapped_file_is_not_copied_aligned_and_private(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    backbone.save(backbone.tiny(), path)
    before = path.read_bytes()
    clip = backbone.open_file(path)
    assert {p.data_ptr() % weights.ALIGN for p in clip.parameters()} == {0}
    maps = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    spans = [(int(start, 16), int(stop, 16)) for start, stop in maps]
    assert all(any(start <= p.data_ptr() < stop for start, stop in spans) for p in clip.parameters())
    with torch.no_grad():
        clip.vision.proj.add_(1)
    assert path.read_bytes() == before
    assert torch.equal(backbone.open_file(path).vision.proj, backbone.tiny().vision.proj)


def test_a_file_in_another_precision_is_what_load_gives(tmp_path: Path) -> None:
    backbone.save(backbone.tiny(), tmp_path / "clip.safetensors")
    low, expected = backbone.open_file(tmp_path / "clip.safetensors", precision="bf16"), backbone.tiny(precision="bf16")
    assert low.digest == expected.digest
    assert all(torch.equal(a, b) for a, b in zip(low.parameters(), expected.parameters(), strict=True))
    with pytest.raises(BadInput, match=r"precision 'int8' is unknown"):
        backbone.open_file(tmp_path / "clip.safetensors", precision="int8")


def test_missing_damaged_and_foreign_backbone_files(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    with pytest.raises(Unavailable, match=r"clip.safetensors does not exist; write it with"):
        backbone.open_file(path)
    backbone.save(backbone.tiny(), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(Unavailable, match=r"clip.safetensors is damaged \(.*\); delete it and save it again"):
        backbone.open_file(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(Unavailable, match=r"clip.safetensors is not in the format 'fedray backbone 2'; save it again"):
        backbone.open_file(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.safetensors"
    backbone.save(backbone.tiny(), path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        backbone.save(backbone.tiny(1), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_architecture_survives_json(config: Config) -> None:
    arch = architecture("small", config(quick_gelu=True), mean=(0.1, 0.2, 0.3))
    assert Architecture.from_json(arch.to_json()) == arch
    assert arch.patches == 9 and arch.activation == "quick_gelu"
