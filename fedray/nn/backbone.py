"""The frozen CLIP: two towers with one seam, the prompts. The only importer of open_clip, and only when it must.

    text    (N, C, d) = project(tower([SOS] context name . [EOT])[EOT])
    image   (B, d)    = project(tower([CLS] patches context)[CLS])

`load` makes one from open_clip's names and weights, `save` and `open_file` keep it in a file that processes map
without open_clip. What travels through a file is bit for bit what was loaded.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedray.errors import BadInput, Unavailable, did_you_mean
from fedray.nn import weights as stored
from fedray.nn.architecture import TINY, Architecture, TowerShape, architecture, refusal
from fedray.nn.features import Memory, first_patch, side_by_side, stored_features, text_features
from fedray.nn.towers import TextTower, VisionTower, fits, full
from fedray.types import Features, Params, Task, Texts, Tokens, VisionPrompts, sets

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

__all__ = ["Architecture", "Backbone", "TowerShape", "from_state", "load", "open_file", "save", "tiny"]
QUICK = "-quickgelu"


class Backbone(nn.Module):
    """A frozen CLIP that takes prompts; made by `load`, `open_file`, `tiny` or `from_state`.

    Attributes:
        arch: shapes, activation, and how pixels must look.
        digest: SHA-256 of architecture and weights, in hex: the key of everything computed from them.
        logit_scale: () CLIP's temperature, already exponentiated (about 100 when pretrained).
    """

    logit_scale: Tensor
    vocabulary: Tensor | None
    memory: Memory | None = None

    def __init__(
        self, arch: Architecture, state: Params, *, digest: str, logit_scale: float, vocabulary: Tensor | None
    ) -> None:
        super().__init__()
        self.arch, self.digest = arch, digest
        with torch.device("meta"):  # no memory and no random numbers: the weights are assigned
            self.text, self.vision = TextTower(arch), VisionTower(arch)
        self.requires_grad_(False).eval()
        self.load_state_dict(state, assign=True)
        self.register_buffer("logit_scale", torch.tensor(logit_scale, dtype=torch.float32), persistent=False)
        self.register_buffer("vocabulary", vocabulary, persistent=False)  # (49408,) CLIP's ids to ours

    def extra_repr(self) -> str:
        """Name and digest."""
        return f"{self.arch.name!r}, digest={self.digest[:12]}"

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (..., w) of ids in our vocabulary, in fp32."""
        return full(self.text.token_embedding(ids))

    def encode(self, text: str) -> list[int]:
        """The bare BPE ids of a text, in our vocabulary, without start and end."""
        found = torch.tensor(tokenizer().encode(text.replace("_", " ")), dtype=torch.long)
        mapped: list[int] = (found if self.vocabulary is None else self.vocabulary.cpu()[found].long()).tolist()
        return mapped

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (n, context) of texts: [SOS] text [EOT] 0 ...; lower-cased, underscores read as spaces.

        Raises:
            BadInput: a text is longer than the context.
        """
        ids = torch.zeros(len(texts), self.arch.context, dtype=torch.long)
        start, end = stored.BPE - 2, stored.BPE - 1
        if self.vocabulary is not None:
            start, end = int(self.vocabulary[start]), int(self.vocabulary[end])
        for row, text in zip(ids, texts, strict=True):
            tokens = [start, *self.encode(text), end]
            if len(tokens) > len(row):
                raise BadInput(
                    f"text {text!r} takes {len(tokens)} tokens, {self.arch.name} holds {len(row)}; shorten it"
                )
            row[: len(tokens)] = torch.tensor(tokens)
        return ids.to(self.logit_scale.device)

    def encode_tokens(self, ids: Tensor, *, full_context: bool = False) -> Tensor:
        """Features (n, d) of plain texts (n, L), in fp32: open_clip's `encode_text`, cut behind the last end."""
        ends = ids.argmax(1)  # the end token has the highest id
        hidden = self.text(ids if full_context else ids[:, : int(ends.max()) + 1])
        return self.text.project(hidden[torch.arange(len(ids), device=ids.device), ends])

    def encode_text(
        self,
        task: Task,
        prompts: Texts | None = None,
        *,
        tokens: bool = False,
        full_context: bool = False,
    ) -> Features:
        """Features (N, C, d) of all classes in fp32, and with `tokens` those of all L tokens (N, C, L, d).

        Without prompts the task's zero-shot features, (1, C, d). Several sets stand side by side along N, their tokens
        padded with 0 to the longest. `full_context` keeps the padding behind the end token: slower, and the same.

        Raises:
            BadInput: prompts too long, too wide or too deep for the tower, or tokens without prompts.
        """
        if prompts is None:
            if tokens:
                raise BadInput("text tokens without text prompts are not kept; give prompts, or take pooled features")
            return Features(task.zeroshot[None])
        how: dict[str, Any] = {"tokens": tokens, "full_context": full_context, "memory": self.memory}
        return side_by_side([text_features(self.text, self.arch, task, one, **how) for one in sets(prompts)])

    def remembering(self) -> Backbone:
        """The same backbone, weights and all, that knows its last text features again: for scoring, batch by batch."""
        twin = copy.copy(self)
        twin.memory = deque(maxlen=8)
        return twin

    def encode_image(
        self, x: Tensor | Features, prompts: VisionPrompts | None = None, *, tokens: Tokens = False
    ) -> Features:
        """Features (B, d) of normalised pixels (B, 3, S, S) in fp32, and those of tokens on demand.

        `tokens` "patches" gives the patches' (B, M, d), "all" every token's (B, 1 + M + n, d), prompts' outputs where
        they stand. Stored features (half precision becomes fp32) pass through.

        Raises:
            BadInput: stored features together with prompts or without the tokens asked for; pixels of another size;
                prompts too wide or too deep.
        """
        if isinstance(x, Features):
            return stored_features(x, prompts, tokens)
        if x.shape[-1] != self.arch.image_size or x.shape[-2] != self.arch.image_size:
            size, want = " x ".join(map(str, x.shape[-2:])), self.arch.image_size
            raise BadInput(f"images of {size} pixels, {self.arch.name} takes {want} x {want}; resize them")
        if prompts is not None:
            fits(prompts.tokens, self.arch.vision, "vision", adapters=[*prompts.adapters])
        hidden = self.vision(x, prompts)
        if tokens == "all":
            every = self.vision.project(hidden)
            return Features(every[:, 0], every)
        pooled, first = self.vision.project(hidden[:, 0]), first_patch(prompts)
        patches = hidden[:, first : first + self.arch.patches]
        return Features(pooled, self.vision.project(patches) if tokens else None)

    def preprocess(self, images: Tensor) -> Tensor:
        """Pixels 0 to 255 (B, 3, S, S) as the tower wants them, (x / 255 - mean) / std in fp32."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.arch.mean, self.arch.std))
        return (images / 255 - mean) / std


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's own, read once."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def load(name: str = "embedded", weights: str | None = None, *, precision: str = "fp32", seed: int = 0) -> Backbone:
    """A backbone by name.

    Args:
        name: "embedded" (small, pretrained, comes along), "tiny" (random, for tests), or a CLIP of open_clip with ViT
            and classic text tower, as "ViT-B-16-quickgelu" or "ViT-L/14".
        weights: open_clip's tag, as "openai"; or a .safetensors or .pt file with open_clip's names; None: random
            ones from `seed` (embedded: its own).
        precision: "fp32", or "bf16" for towers of half the size (features and prompts stay fp32).
        seed: of random weights; the global random state is left alone.

    Raises:
        BadInput: unknown or unsuitable name, tag or precision; weights that do not fit.
        Unavailable: weights that are missing, damaged or cannot be downloaded.
    """
    kind, name = stored.checked(precision), name.replace("/", "-")
    if name in ("embedded", "tiny"):
        if weights is not None:
            raise BadInput(f"weights {weights!r} for {name!r}, which has its own; drop weights or take another name")
        if name == "tiny":
            return tiny(seed, precision=kind)
        arch, state, vocabulary = stored.read_embedded(Path(str(files("fedray"))) / "assets")
        return from_state(arch, state, precision=kind, vocabulary=vocabulary)
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        known = [n for n in open_clip.list_models() if not refusal(open_clip.get_model_config(n))]
        raise BadInput(f"backbone {name!r} is unknown. {did_you_mean(name, ['embedded', 'tiny', *known])}")
    arch = architecture(name, config)
    if weights is None:
        return from_state(arch, _random(config, seed), precision=kind)
    if Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        return from_state(arch, stored.read_foreign(Path(weights)), precision=kind)
    return _pretrained(name, config, weights, kind)


def _random(config: Mapping[str, Any], seed: int) -> Params:
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**64)  # which is what torch takes; any whole number is a seed
        return dict(CLIP(**config).state_dict())


def _pretrained(name: str, config: Mapping[str, Any], tag: str, precision: stored.Precision) -> Backbone:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    other = name.removesuffix(QUICK) if name.endswith(QUICK) else name + QUICK
    known, quick = get_pretrained_cfg(name, tag), bool(config.get("quick_gelu", False))
    found = known or get_pretrained_cfg(other, tag)
    if found and bool(found.get("quick_gelu", False)) != quick:
        wanted = "plain GELU" if quick else "QuickGELU"
        raise BadInput(f"{name} with weights {tag!r} needs {wanted}; use {other}")
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise BadInput(f"weights {tag!r} are neither a tag of {name} nor a file. {did_you_mean(tag, tags)}")
    try:
        model = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # whatever a download can die of: sockets, hub, disk, checksums
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Unavailable(
            f"weights {tag!r} of {name} could not be fetched ({reason}); connect once, or give a local file as weights"
        ) from error
    pixels = {key: known[key] for key in ("mean", "std", "interpolation") if key in known}
    return from_state(architecture(name, config, **pixels), model.state_dict(), precision=precision)


def tiny(seed: int = 0, *, precision: str = "fp32") -> Backbone:
    """A random backbone that costs milliseconds: 16 pixels, 4 patches, 2 layers, context 20, 4096 rows of words."""
    vocabulary = 1 + torch.arange(stored.BPE, dtype=torch.int32) % 4093
    vocabulary[0], vocabulary[-2], vocabulary[-1] = 0, 4094, 4095
    return from_state(architecture("tiny", TINY), _random(TINY, seed), precision=precision, vocabulary=vocabulary)


def from_state(
    arch: Architecture, state: Mapping[str, Tensor], *, precision: str = "fp32", vocabulary: Tensor | None = None
) -> Backbone:
    """A backbone from the state dict of an `open_clip.model.CLIP`, all of it and by its names.

    Args:
        arch: as `architecture` reads it.
        state: the weights; fp32 tensors are kept, not copied.
        precision: "fp32" or "bf16".
        vocabulary: (49408,) rows of the token embedding by CLIP's ids, int32; the end token must get the highest.

    Raises:
        BadInput: weights of another shape, or an unknown precision.
    """
    kind = stored.checked(precision)
    exact = stored.cast(stored.translate(state, arch), "fp32")
    scale = state[stored.SCALE].detach().float().exp()
    digest = stored.digest(arch, exact, scale, *([] if vocabulary is None else [vocabulary]))
    return Backbone(
        arch,
        stored.cast(exact, kind),
        digest=digest if kind == "fp32" else stored.derived(digest, kind),
        logit_scale=float(scale),
        vocabulary=vocabulary,
    )


def save(clip: Backbone, path: Path) -> None:
    """Write a backbone to a file that processes can map, whole or not at all."""
    tensors = clip.state_dict() | ({} if clip.vocabulary is None else {"vocabulary": clip.vocabulary})
    notes = {"architecture": clip.arch.to_json(), "digest": clip.digest, "logit_scale": repr(float(clip.logit_scale))}
    notes["precision"] = "bf16" if clip.vision.proj.dtype == torch.bfloat16 else "fp32"
    stored.write(Path(path), tensors, notes)


def open_file(path: Path, *, precision: str | None = None, device: str = "cpu") -> Backbone:
    """Map a file that `save` wrote, without open_clip; without a copy on the CPU in the precision as saved (None).

    Raises:
        BadInput: unknown precision.
        Unavailable: the file is missing, damaged or not ours.
    """
    notes, tensors = stored.read(Path(path))
    kept, digest = stored.checked(notes["precision"]), notes["digest"]
    kind = kept if precision is None else stored.checked(precision)
    vocabulary = tensors.pop("vocabulary", None)
    clip = Backbone(
        Architecture.from_json(notes["architecture"]),
        stored.cast(tensors, kind),
        digest=digest if kind == kept else stored.derived(digest, kind),
        logit_scale=float(notes["logit_scale"]),
        vocabulary=vocabulary,
    )
    return clip.to(device)
