"""What is made for a task's classes: it makes the inner prompts, or refuses."""

import pytest
import torch

from fedray.errors import BadInput
from fedray.nn.bound import Bound
from fedray.nn.prompts import TextContext, VisionContext


def test_the_inner_prompts_are_passed_on(clip, given, images):
    inner = TextContext(clip, n=3)
    bound = Bound(inner, 4)
    assert not bound.vision
    assert torch.equal(bound(given, images).text.tokens, inner(given, images).text.tokens)
    assert Bound(VisionContext(clip, n=2), 4).vision
    assert [*bound.state_dict()] == ["inner.tokens"]


def test_another_number_of_classes_is_refused(clip, given, images):
    with pytest.raises(
        BadInput, match="a method made for 3 classes can't tell 4 apart; build it for that task, or take"
    ):
        Bound(TextContext(clip, n=3), 3)(given, images)
