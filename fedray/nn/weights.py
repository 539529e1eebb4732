"""Weights on their way in and out: other people's files by open_clip's names, ours as mapped safetensors.

A file of ours holds the towers in their working precision, so that processes of one machine share its pages. The
mapping is private: what a process writes into a frozen weight by mistake stays in that process. Its header holds the
SHA-256 of all that is in the file (with zeros in that place): a flipped bit would otherwise be a wrong result.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file
from torch import Tensor, nn

from fedray.errors import BadInput, Unavailable
from fedray.nn.architecture import Architecture, architecture
from fedray.nn.towers import TextTower, VisionTower
from fedray.types import Params

Precision: TypeAlias = Literal["fp32", "bf16"]
FORMAT = "fedray backbone 2"
"""With a digest of itself; caches of older versions are written anew."""
SCALE = "logit_scale"
BPE = 49408
"""Rows of CLIP's own vocabulary; its last two are start and end."""
ALIGN = 64
"""Bytes; matrix products may round differently on memory that is aligned otherwise."""
HEADER = 2**24
"""Bytes of a header, at most."""
SEAL, BLANK = re.compile(rb'"sha256":"([0-9a-f]{64})"'), b"0" * 64
"""Where a header has its digest, and what stands there while it is computed."""

_RENAMES = (
    ("blocks.", "transformer.resblocks."),
    (".qkv.", ".attn.in_proj_"),
    (".out.", ".attn.out_proj."),
    (".fc.", ".mlp.c_fc."),
    (".proj.", ".mlp.c_proj."),
)
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}


def checked(precision: str) -> Precision:
    """The precision, if it is one.

    Raises:
        BadInput: it is not.
    """
    if precision == "fp32":
        return "fp32"
    if precision == "bf16":
        return "bf16"
    raise BadInput(f"precision {precision!r} is unknown; take fp32 (exact) or bf16 (faster)")


def translate(state: Mapping[str, Tensor], arch: Architecture) -> Params:
    """Rename open_clip's tensors to ours, strictly: all of them, each of its shape, nothing else.

    Raises:
        BadInput: names the first tensor that differs, and both shapes.
    """
    with torch.device("meta"):
        towers = nn.ModuleDict({"text": TextTower(arch), "vision": VisionTower(arch)}).state_dict()
    ours = {_theirs(name): name for name in towers}
    shapes = {name: tuple(towers[own].shape) for name, own in ours.items()} | {SCALE: ()}
    remedy = f"give weights of a {arch.name}"
    for name in [*shapes, *sorted(set(state) - set(shapes))]:
        needed = shapes.get(name)
        if name not in state:
            raise BadInput(f"the weights have no tensor {name!r}, {arch.name} needs it with shape {needed}; {remedy}")
        found = tuple(state[name].shape)
        if needed is None:
            raise BadInput(f"the weights have a tensor {name!r} of shape {found}, {arch.name} has none; {remedy}")
        if found != needed:
            raise BadInput(f"tensor {name!r} has shape {found} in the weights, {needed} in {arch.name}; {remedy}")
    return {own: state[name] for name, own in ours.items()}


def _theirs(name: str) -> str:
    name = f"visual.{name[7:]}" if name.startswith("vision.") else name.removeprefix("text.")
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name


def cast(state: Mapping[str, Tensor], precision: Precision) -> Params:
    """Floating weights of any shape in working precision; layer norms stay fp32: cheap there and touchy elsewhere."""
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    return {name: w.detach().to(torch.float32 if ".ln_" in name else low).contiguous() for name, w in state.items()}


def digest(arch: Architecture, state: Mapping[str, Tensor], *others: Tensor) -> str:
    """SHA-256 (hex) of an architecture with its weights: names, precisions, shapes and values."""
    hasher = hashlib.sha256(arch.to_json().encode())
    for name, weight in [*sorted(state.items()), *(("", other) for other in others)]:
        hasher.update(f"{name}{weight.dtype}{tuple(weight.shape)}".encode())
        hasher.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def derived(base: str, precision: Precision) -> str:
    """The digest of the same weights in another precision: stored features of both must not mix."""
    return hashlib.sha256(f"{base} {precision}".encode()).hexdigest()


def read_foreign(path: Path) -> Params:
    """A state dict from a .safetensors or .pt file; no code in it is run.

    Raises:
        Unavailable: the file is missing or damaged.
        BadInput: it holds something else than tensors.
    """
    if not path.is_file():
        raise Unavailable(f"weights file {path} does not exist; give an existing .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            _bounded(path)
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unavailable(f"weights file {path} cannot be read ({reason}); fetch it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"weights file {path} holds no state dict; save model.state_dict() into it")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _bounded(path: Path) -> None:
    """ValueError for a header that would take the reader a gigabyte."""
    with path.open("rb") as file:
        if (length := int.from_bytes(file.read(8), "little")) > HEADER:
            raise ValueError(f"a header of {length} bytes")


def read_embedded(assets: Path) -> tuple[Architecture, Params, Tensor]:
    """The backbone that comes along: architecture, weights by name, vocabulary (49408,); its SHA-256 is checked.

    Raises:
        Unavailable: they are missing or damaged.
    """
    try:
        facts: dict[str, Any] = json.loads((assets / "embedded.json").read_text())
        content = (assets / "embedded.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise Unavailable(f"the embedded backbone cannot be read ({error}); re-install fedray") from error
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise Unavailable("the embedded backbone is damaged, its SHA-256 differs; re-install fedray")
    state = load(content)
    kept = state.pop("vocabulary").long()  # CLIP's ids that have a row, sorted
    vocabulary = torch.full((BPE,), int(facts["unknown"]), dtype=torch.int32)
    vocabulary[kept] = torch.arange(len(kept), dtype=torch.int32)
    config: dict[str, Any] = {
        key: facts[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in facts
    }
    pixels = {key: facts[key] for key in ("mean", "std", "interpolation")}
    return architecture("embedded", config, **pixels), state, vocabulary


def write(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors of any shape as our own safetensors file, whole or not at all; large ones first: all stay aligned.

    The library's own writer starts the data at any multiple of 8 bytes.
    """
    state = {k: t.detach().cpu().contiguous().flatten() for k, t in tensors.items()}
    order = sorted(state, key=lambda k: (-state[k].nbytes, k))
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, **notes, "sha256": BLANK.decode()}}
    end = 0
    for name in order:
        start, end = end, end + state[name].nbytes
        kind, shape = _DTYPES[state[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    total = hashlib.sha256(struct.pack("<Q", len(text)) + text)
    for name in order:
        total.update(state[name].view(torch.uint8).numpy().data)
    text = text.replace(BLANK, total.hexdigest().encode(), 1)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                file.write(state[name].view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def intact(path: Path) -> bool:
    """Whether a file is there, and is byte by byte what `write` wrote; looked at once as long as it is not touched."""
    try:
        facts = path.stat()
        return _intact(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    except OSError:
        return False


@lru_cache
def _intact(path: Path, *version: int) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > HEADER or len(seals := SEAL.findall(text := file.read(length))) != 1:
            return False
        total = hashlib.sha256(start + text.replace(seals[0], BLANK, 1))
        while block := file.read(1 << 20):
            total.update(block)
    return bool(total.hexdigest().encode() == seals[0])


def read(path: Path) -> tuple[dict[str, str], Params]:
    """Map a file that `write` wrote: (notes, tensors), verified once per process, nothing copied until it is touched.

    Raises:
        Unavailable: the file is missing, damaged or not ours.
    """
    if not path.is_file():
        raise Unavailable(f"backbone file {path} does not exist; write it with fedray.nn.backbone.save")
    try:
        _bounded(path)
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise Unavailable(f"backbone file {path} is damaged ({error}); delete it and save it again") from error
    if notes.get("format") != FORMAT:
        raise Unavailable(f"backbone file {path} is not in the format {FORMAT!r}; save it again with this version")
    if not intact(path):
        raise Unavailable(f"backbone file {path} is damaged (its SHA-256 differs); delete it and save it again")
    return notes, tensors
