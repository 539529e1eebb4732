"""Sentences of a user's file: how they are read, encoded and refused."""

import json
import pickle

import pytest
import torch
import torch.nn.functional as F

from fedray.errors import BadInput, Unavailable
from fedray.nn.attributes import descriptions, read

LINES = {
    "cat": ["a cat with fur", "it meows"],
    "Ice Cream_truck": ["it sells ice", "a van"],
    "dog": ["a dog, which barks", "four legs"],
    "boeing 747": ["a jumbo jet", "it flies"],
    "unused": ["one", "two"],
}


def write(tmp_path, content):
    path = tmp_path / "attributes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_features_stand_by_sentence_and_class(both, given, tmp_path):
    model, clip = both
    block = descriptions(clip, write(tmp_path, LINES))
    found = block(given)
    assert found.shape == (2, 4, 24)
    for c, lines in enumerate([*LINES.values()][:4]):
        expected = F.normalize(model.encode_text(clip.tokenize(lines)), dim=-1)
        torch.testing.assert_close(found[:, c], expected, rtol=0, atol=1e-5)
    assert not found.requires_grad
    assert block(given) is found  # a visit encodes once
    assert torch.equal(pickle.loads(pickle.dumps(block))(given), found)


def test_without_a_file_the_hand_written_texts_stand(clip, given):
    assert torch.equal(descriptions(clip, None)(given), given.task.zeroshot[None])


def test_a_class_without_sentences_is_named(clip, given, tmp_path):
    block = descriptions(clip, write(tmp_path, {"cat": ["fur"], "dog": ["tail"]}))
    with pytest.raises(
        BadInput, match="class 'ice_cream truck' is not in the file of attributes; write sentences for it"
    ):
        block(given)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"are not JSON \(Expecting property name.*\); write \{class: \[sentence, ...\]\}"),
        ("[]", "hold no classes; write"),
        ({}, "hold no classes; write"),
        ({"cat": []}, "attributes of 'cat' in .* are not a list of sentences; give it at least one"),
        ({"cat": "fur"}, "attributes of 'cat' in .* are not a list of sentences"),
        ({"cat": [" "]}, "attributes of 'cat' in .* are not a list of sentences"),
        ({"cat": ["a", "b"], "dog": ["c"]}, "give 'dog' 1 sentences and 'cat' 2; give every class as many"),
        ({"ice_cream": ["a"], "Ice cream": ["b"]}, "hold 'ice cream' twice, once as 'Ice cream'; put them together"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    with pytest.raises(BadInput, match=reason):
        read(write(tmp_path, content))


def test_a_missing_file_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match=r"nowhere.json' can't be read \(No such file or directory\); check"):
        read(str(tmp_path / "nowhere.json"))


def test_sentences_too_long_are_refused(clip, tmp_path):
    with pytest.raises(BadInput, match="takes 32 tokens, small holds 20; shorten it"):
        descriptions(clip, write(tmp_path, {"cat": ["fur " * 30]}))
