"""Label spaces: tokens, name lengths and zero-shot features, against open_clip."""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from fedray.errors import BadInput
from fedray.nn import backbone
from fedray.nn.backbone import Backbone
from fedray.nn.task import build_task

NAMES = ["cat", "ice_cream truck", "Boeing 747"]
TEMPLATES = ["a photo of a {}.", "{} seen from above", "art of the {}, and only the {}"]


@torch.no_grad()
def test_zero_shot_features_are_unit_means_of_unit_features(both: tuple[CLIP, Backbone]) -> None:
    model, clip = both
    task = build_task(clip, NAMES, TEMPLATES)
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    for c, name in enumerate(NAMES):
        texts = [t.replace("{}", name.replace("_", " ")) for t in TEMPLATES]
        mean = model.encode_text(tokenizer(texts), normalize=True).mean(0)
        torch.testing.assert_close(task.zeroshot[c], F.normalize(mean, dim=0), rtol=0, atol=1e-5)


def test_tokens_and_lengths(clip: Backbone) -> None:
    task = build_task(clip, NAMES, ["a {}"])
    assert task.names == tuple(NAMES)  # as given: labels and tables speak of them
    assert torch.equal(
        task.tokens, open_clip.SimpleTokenizer(context_length=20)(["cat.", "ice cream truck.", "boeing 747."])
    )
    assert task.lengths.tolist() == [1, 3, 4]  # CLIP reads numbers digit by digit
    assert not task.zeroshot.requires_grad


def test_many_classes_come_in_batches(clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {i}" for i in range(7)]
    whole = build_task(clip, names, ["a {}"])
    monkeypatch.setattr("fedray.nn.task.BATCH", 3)
    torch.testing.assert_close(build_task(clip, names, ["a {}"]).zeroshot, whole.zeroshot, rtol=0, atol=1e-5)


def test_a_task_of_a_bf16_backbone_is_fp32() -> None:
    task = build_task(backbone.tiny(precision="bf16"), ["cat", "dog"], ["a {}"])
    assert task.zeroshot.dtype == torch.float32
    torch.testing.assert_close(task.zeroshot.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{}"], r"class names are empty; give at least one"),
        (["cat", " _"], ["{}"], r"class name ' _' is blank; every class needs a word"),
        (["cat", "\t"], ["{}"], r"class name '\\t' is blank; every class needs a word"),
        (["\u00a0"], ["{}"], r"class name '\\xa0' is blank; every class needs a word"),
        (["ice_cream", "dog", "Ice  cream"], ["{}"], r"'ice_cream' and 'Ice  cream' read the same; rename one"),
        (["cat"], [], r"templates are empty; give at least one, as 'a photo of a \{\}\.'"),
        (["cat"], ["{}", "a photo"], r"template 'a photo' has no place for the class name; write \{\} where it goes"),
        (["cat"], ["very " * 30 + "{}"], r"text 'very .*cat' takes 33 tokens, small holds 20; shorten it"),
        (["cat " * 18], ["{}"], r"text 'cat .*' takes 21 tokens, small holds 20; shorten it"),
    ],
)
def test_refusals(clip: Backbone, names: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_task(clip, names, templates)


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("embedded", ["forest", "cat", "river", "oak"], ["3 classes", "embedded ('forest', 'river', 'oak')"]),
        ("tiny", ["caf\u00e9", "cafe\u0301"], ["2 classes", "tiny ('caf\u00e9', 'cafe\u0301')"]),
        ("embedded", ["zero", "one", "cat"], []),
    ],
)
def test_names_that_are_one_to_the_backbone_are_said(
    name: str, names: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fedray"):
        task = build_task(backbone.load(name), names, ["a photo of a {}."])
    assert all(text in caplog.text for text in said) and bool(caplog.text) == bool(said)
    assert (len(task.tokens.unique(dim=0)) < len(names)) == bool(said)
