"""What travels on CLIP ViT-B/16, from the methods' own state dicts (METHODS 5.4), counted as the server counts it.

All by default options but where the row says otherwise.
"""

from __future__ import annotations

from types import SimpleNamespace

import open_clip
import pytest
import torch

from fedray.fed.loop import size
from fedray.fed.peers import Experts, Peers
from fedray.fed.server import FedAvg
from fedray.method import parameters, split
from fedray.nn.architecture import architecture
from fedray.nn.backbone import Backbone
from fedray.recipe import Recipe
from fedray.types import Result

VIT = "ViT-B-16-quickgelu"
ROWS = [
    # method, options, up, kept at home
    ("zeroshot", {}, 0, 0),
    ("promptfl", {}, 8_192, 0),
    ("promptfl", {"n_ctx": 4}, 2_048, 0),  # FedRSCLIP's FedAvg-PL
    ("fedprox", {}, 8_192, 0),
    ("fedotp", {}, 8_192, 8_192),
    ("fedotp", {"n_ctx": 4}, 2_048, 2_048),  # its CIFAR-100 script
    ("otdpp", {}, 32_256, 32_256),  # J = 9, q = 4
    ("otdpp_inferred", {}, 2_048, 2_048),
    ("fedrsclip", {}, 2_048, 2_048),
    ("fedpgp", {}, 8_192, 8 * (16 + 512)),
    ("pfedmoap", {}, 8_192, 66_048),
    ("fedtpg", {}, 4_206_080, 0),
    ("fedvlp", {}, 4 * (512 + 768), 0),
    ("maple", {}, 3_555_072, 0),
    ("align", {}, 3_582_720, 0),
    ("align", {"coupling": "none"}, 92_160, 0),
    ("align", {"prompts": 1, "views": 1}, 3_555_072, 0),  # MaPLe's
    ("ivlp", {}, 46_080, 0),  # 4 + 4 tokens, J = 9
    ("ivlp", {"depth": 12}, 61_440, 0),
    ("ivlp", {"n_ctx": 2, "n_vision": 2}, 23_040, 0),  # MaPLe's baseline
    ("promptsrc", {}, 46_080, 0),
    ("promptot", {}, 61_440, 0),
    ("kgcoop", {}, 2_048, 0),
    ("prograd", {}, 8_192, 0),
    ("plot", {}, 32_768, 0),
    ("vpt", {}, 73_728, 0),
]


@pytest.fixture(scope="module")
def vit():
    """All that injectors read of the backbone, without its 150 million weights."""
    config = open_clip.get_model_config(VIT)
    arch = architecture(VIT, config)
    return SimpleNamespace(
        arch=arch,
        logit_scale=torch.tensor(100.0),
        encode=lambda text: Backbone.encode(SimpleNamespace(vocabulary=None), text),
        embed=lambda ids: torch.zeros(len(ids), arch.text.width),
    )


def parts(vit, name, options):
    method = Recipe(name, **options).build(vit, None)
    return split(parameters(method), method.private)


@pytest.mark.parametrize(("name", "options", "up", "kept"), ROWS, ids=[f"{r[0]}-{r[1]}" for r in ROWS])
def test_parameters_and_bytes_up_per_round_and_client(vit, name, options, up, kept):
    shared, private = parts(vit, name, options)
    assert (sum(v.numel() for v in shared.values()), sum(v.numel() for v in private.values())) == (up, kept)
    assert size(shared) == 4 * up  # bytes, in float32


@pytest.mark.parametrize(
    ("name", "server", "down"),
    [
        ("fedotp", FedAvg(), 8_192),
        ("otdpp", FedAvg(), 32_256),
        ("fedrsclip", Peers(), 2_048 + 9 * 2_048),  # the others' prompts are its negatives
        ("pfedmoap", Experts(), 8_192 * (1 + 9)),  # nine experts at most
        ("pfedmoap", Experts(k=3), 8_192 * (1 + 3)),
    ],
)
def test_parameters_down_to_one_of_ten_clients(vit, name, server, down):
    """In round 2, when every client has uploaded once."""
    shared, _ = parts(vit, name, {})
    results = [Result(1, k, 1, {n: v + k for n, v in shared.items()}, {}) for k in range(10)]
    model, inbox = server.send(server.update(server.init(shared), results), 4, 2)
    assert size(model) + size(inbox) == 4 * down


def test_otdpps_share_of_the_vision_tower_is_the_papers(vit):
    """0.004752 %: global and personal prompt of the inferred method over 86,192,640 weights."""
    both = sum(v.numel() for part in parts(vit, "otdpp_inferred", {}) for v in part.values())
    assert f"{100 * both / 86_192_640:.6f}" == "0.004752"
