"""Consistency with the frozen feature of the mirror image."""

import pytest
import torch

from fedray.errors import BadInput
from fedray.nn.mirror import Consistent
from fedray.types import Features, Output

NOBODY = torch.nn.Identity()


@pytest.mark.parametrize("flip", [False, True])
def test_it_is_nothing_where_the_image_is_as_frozen(clip, given, images, flip):
    frozen = clip.encode_image(images.flip(-1) if flip else images)
    out = Output(Features(given.task.zeroshot[None]), frozen, torch.zeros(3, 4))
    y = torch.zeros(3, dtype=torch.long)
    same = Consistent(10.0, flip)(NOBODY, given, images, y, out)["consistency"]
    torch.testing.assert_close(same, torch.tensor(0.0), rtol=0, atol=1e-5)
    other = Consistent(10.0, not flip)(NOBODY, given, images, y, out)["consistency"]
    cosine = torch.cosine_similarity(clip.encode_image(images).pooled, clip.encode_image(images.flip(-1)).pooled)
    torch.testing.assert_close(other, 10 * (1 - cosine.mean()))


def test_a_negative_weight_is_refused():
    with pytest.raises(BadInput, match=r"alpha is -1\.0; it must be 0 \(off\) or above"):
        Consistent(-1.0)
