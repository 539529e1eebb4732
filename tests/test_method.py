"""Composition, and the split in shared and private."""

import pytest
import torch

from fedray.build import build
from fedray.errors import BadInput
from fedray.experiment import Experiment
from fedray.method import PromptMethod, load, parameters, split
from fedray.nn import backbone
from fedray.nn.heads import Cosine, Transport
from fedray.nn.prompts import Beside, NoPrompts, TextContext, VisionContext
from fedray.testing import given, images

CLIP = backbone.tiny()


def dual():
    return PromptMethod(
        Beside(TextContext(CLIP, n=2), TextContext(CLIP, n=2)), Transport(), private=["prompts.local.*"]
    )


def test_split_is_a_partition_of_the_names():
    method = dual()
    shared, private = split(parameters(method), method.private)
    assert set(shared) == {"prompts.shared.tokens"}
    assert set(private) == {"prompts.local.tokens"}


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(BadInput, match=r"private pattern 'prompt\.\*' matches none of \['prompts\.tokens'\]"):
        PromptMethod(TextContext(CLIP, n=2), Cosine(), private=["prompt.*"])


def test_star_is_local_training():
    method = PromptMethod(TextContext(CLIP, n=2), Cosine(), private=["*"])
    assert split(parameters(method), method.private)[0] == {}


def test_load_is_strict():
    method = dual()
    with pytest.raises(RuntimeError, match="Missing key"):
        load(method, {})


@pytest.mark.parametrize(
    ("prompts", "head", "needs"),
    [
        (NoPrompts(), Cosine(), "pooled"),
        (TextContext(CLIP, n=2), Cosine(), "pooled"),
        (TextContext(CLIP, n=2), Transport(), "tokens"),
        (VisionContext(CLIP, n=2), Cosine(), "pixels"),
    ],
)
def test_what_a_method_needs_of_an_image(prompts, head, needs):
    assert PromptMethod(prompts, head).needs == needs


def test_penalties_are_named_terms_beside_the_loss():
    method = PromptMethod(
        TextContext(CLIP, n=2), Cosine(), penalties=[lambda m, g, x, y, out: {"size": out.logits.square().mean()}]
    )
    terms = method.terms(given(CLIP, method), images(CLIP, method), torch.zeros(8, dtype=torch.long))
    assert list(terms) == ["loss", "size"]
    assert terms["size"] > 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "fedrsclip"}, "fedrsclip needs what server.kind peers sends, got fedavg; .* or say peers"),
        ({"method": "pfedmoap"}, "pfedmoap needs what server.kind experts sends, got fedavg; .* or say experts"),
    ],
)
def test_a_method_that_lives_on_its_inbox_names_its_server(changes, text, tmp_path):
    experiment = Experiment().override(**{"clip.name": "tiny", "method.n_ctx": 4, **changes})
    with pytest.raises(BadInput, match=text):
        build(experiment.override(server="fedavg"), cache=tmp_path)
    assert build(experiment, cache=tmp_path).server.kind == text.split()[-1]  # nothing asked for: its own
    assert build(experiment.override(server=text.split()[-1]), cache=tmp_path).server.kind == text.split()[-1]


def test_without_peers_in_its_loss_any_server_will_do(tmp_path):
    alone = {"method": "fedrsclip", "method.n_ctx": 4, "method.negatives": "classes", "clip.name": "tiny"}
    build(Experiment().override(**alone), cache=tmp_path)
