"""How the embedded backbone came to be: a small CLIP, pretrained on pictures that were drawn, not taken.

Question    can a CLIP of 1.7 M parameters, pretrained in half an hour on rendered glyphs, pictographs, garments and
            textures, recognise real images (handwritten digits, clothes) well above chance, and far from perfectly, so
            that prompts have something to learn?
Command     python studies/pretrain/train.py --out fedray/assets      (about 35 minutes of one core)
            python studies/pretrain/train.py --steps 3 --out clip     (does it run?)
Fonts       what is installed: the more, the better the digits. Used: the packages fonts-freefont-ttf, fonts-liberation,
            fonts-dejavu, fonts-symbola (pictographs), and some fifty text and handwriting families. Other fonts make
            another model.
Model       open_clip's own CLIP: 28 pixels, patches of 4, vision width 128, 4 layers; text width 128, 3 layers,
            context 24; joint width 128. The vocabulary is cut to the BPE ids that captions can use.
Loss        CLIP's contrast of the class token with the text, plus half of the same contrast for the mean patch: that
            makes patch features speak the text's language, which transport heads need.
No image of a data set that fedray evaluates on was seen in training. Measured: see README.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
import world
from open_clip import SimpleTokenizer
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from fedray.data import sources
from fedray.errors import Unavailable

CONTEXT, BPE, START, END = 24, 49408, 49406, 49407
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 28, "interpolation": "bicubic"}
SHOULD_READ = (  # words that tasks and templates use, whether or not a caption happens to
    *"zero one two three four five six seven eight nine t-shirt trouser pullover dress coat".split(),
    *"sandal shirt sneaker bag boot ankle digit number letter inverted noisy rotated photo a of the in".split(),
    *"video game art itap bad small large big good X x . , ! - and with on".split(),
    *"blurry low resolution upside down shoe shoes clothing clothes image item both".split(),
    "a photo of the digit zero.",
    "a origami bag.",
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *world.COLOURS,
)


@dataclass(frozen=True)
class Options:
    """Training: the defaults made the embedded weights."""

    out: Path = Path("embedded")  # folder for embedded.safetensors and embedded.json
    steps: int = 1450
    batch: int = 256
    lr: float = 1e-3  # peak; warm-up over 100 steps, then cosine
    patches: float = 0.5  # weight of the mean patch's contrast
    seed: int = 0
    threads: int = 1


class Words:
    """CLIP's tokenizer with only the rows that this world needs."""

    def __init__(self, things: world.Banks) -> None:
        self.tokenizer = SimpleTokenizer(context_length=CONTEXT)
        texts = set(SHOULD_READ)
        for step in range(0, 120, 4):
            texts |= set(world.batch(things, 128, 1, step)[1])
        texts |= {name for bank in things.values() for thing in bank for name in thing.names}
        used = {i for text in texts for i in self.tokenizer([text])[0].tolist()}
        self.ids = sorted(used | {0, START, END})  # the end keeps the highest row: pooling looks for it
        self.unknown = self.ids.index(self.tokenizer.encode("x")[0])
        self.rows = torch.full((BPE,), self.unknown)
        self.rows[torch.tensor(self.ids)] = torch.arange(len(self.ids))

    def __call__(self, texts: list[str]) -> Tensor:
        """Rows (n, context) of texts."""
        return self.rows[self.tokenizer(texts)]


def architecture(rows: int) -> dict[str, Any]:
    """Keywords of open_clip's CLIP."""
    vision = {"image_size": 28, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4}
    text = {"context_length": CONTEXT, "vocab_size": rows, "width": 128, "heads": 4, "layers": 3}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


def encode_text(model: CLIP, ids: Tensor) -> Tensor:
    """Unit features (n, d), computed up to the last end token only."""
    ends = ids.argmax(1)
    x = model.token_embedding(ids[:, : int(ends.max()) + 1])
    x = x + model.positional_embedding[: x.shape[1]]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[: x.shape[1], : x.shape[1]]))
    return F.normalize(x[torch.arange(len(x)), ends] @ model.text_projection, dim=-1)


def encode_image(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features of the class token and of the mean patch, (n, d) each."""
    tower = model.visual
    x = tower.ln_post(tower.transformer(tower._embeds(images))) @ tower.proj
    return F.normalize(x[:, 0], dim=-1), F.normalize(x[:, 1:].mean(1), dim=-1)


@torch.no_grad()
def zero_shot(model: CLIP, words: Words) -> str:
    """Accuracy on the test images of the real sets that are at hand."""
    model.eval()
    told = []
    for make in (sources.digits, sources.fashion):
        try:
            source = make()
        except Unavailable:
            continue
        images = torch.from_numpy(source.test.images[:2000].copy()).permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.from_numpy(source.test.labels[:2000].copy())
        text = encode_text(model, words([source.templates[0].format(name) for name in source.names]))
        right = [(f @ text.T).argmax(1).eq(labels).float().mean().item() for f in encode_image(model, images)]
        told.append(f"{source.name} {100 * right[0]:.1f} (patches {100 * right[1]:.1f}, n {len(labels)})")
    model.train()
    return ", ".join(told)


def train(options: Options) -> None:
    """Pretrain, telling zero-shot accuracy on the way, and export."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    things = world.banks(options.seed)
    words = Words(things)
    shape = architecture(len(words.ids))
    model = CLIP(**{**shape, "vision_cfg": {**shape["vision_cfg"], "patch_dropout": 0.5}})
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    contrast, total, started = ClipLoss(), 0.0, time.process_time()
    for step in range(options.steps):
        for group in optimiser.param_groups:
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
            group["lr"] = options.lr * min(1, (step + 1) / 100) * cosine + 1e-6
        images, captions = world.batch(things, options.batch, options.seed, step)
        (whole, patch), text = encode_image(model, images), encode_text(model, words(captions))
        scale = model.logit_scale.exp()
        loss = contrast(whole, text, scale) + options.patches * contrast(patch, text, scale)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        total += loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.process_time() - started
            told = zero_shot(model, words) if (step + 1) % 200 == 0 else ""
            print(f"{step + 1} loss {total / 100:.3f} cpu {seconds:.0f} s {told}", flush=True)
            total = 0.0
    export(model, words, options.out)
    print(f"zero-shot: {zero_shot(model, words)}; written to {options.out}")


def export(model: CLIP, words: Words, out: Path) -> None:
    """Half-precision weights and what `fedray.nn.backbone` needs to know of them."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    data = save({**state, "vocabulary": torch.tensor(words.ids, dtype=torch.int32)})
    facts = {
        **architecture(len(words.ids)),
        **PIXELS,
        "unknown": words.unknown,
        "sha256": hashlib.sha256(data).hexdigest(),
        "provenance": "made by studies/pretrain/train.py from rendered pictures with captions; it saw no real image",
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "embedded.safetensors").write_bytes(data)
    (out / "embedded.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    train(tyro.cli(Options))
