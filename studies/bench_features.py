"""What does the feature store cost, and what does it save? Measured on CLIP ViT-B/16 and real images.

Question    How long does it take to store patch features, are they the tower's own bits, how much memory do many
            readers take together, how much faster is an epoch, and how far do logits move in half precision?
Images      handwritten digits and Fashion-MNIST in turn, enlarged to the backbone's size. The weights are random: no
            time or size depends on them, and the cosines of random features spread less than a trained CLIP's.
Prints      measure x (value, n), as Markdown. Times are CPU seconds of one thread; ratios are of one run.
Cost        30 minutes, 5 GB of memory, 2 GB of disk; with --images 200 four minutes.

    python studies/bench_features.py --images 200
    python studies/bench_features.py --smoke
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from fedray import study
from fedray.console import say

if TYPE_CHECKING:
    import torch

    from fedray.data.features import Samples
    from fedray.data.sources import Source, Table
    from fedray.nn.backbone import Backbone

T = TypeVar("T")
BATCH = 32
NAMES = 10
"""Classes of the task that is trained and scored."""


@dataclass(frozen=True)
class Options:
    """How much of it."""

    images: int = 2000
    train: int = 64  # images of the training epoch, which also pays for the text tower
    readers: int = 8  # processes that map the features at the same time
    clip: str = "ViT-B-16-quickgelu"
    smoke: bool = False  # the tiny backbone, 96 images, 2 readers


def main(o: Options) -> int:
    """Measure, print."""
    import numpy as np

    from fedray.data.features import store
    from fedray.fed.client import threads
    from fedray.nn import backbone
    from fedray.nn.task import build_task

    o = Options(96, 32, 2, "tiny") if o.smoke else o
    say("| measure | value | n |\n|---|---:|---:|")
    with TemporaryDirectory() as folder, threads(1):
        root = Path(folder)
        clip, source, table = backbone.load(o.clip), *pictures(o.images)
        task = build_task(clip, source.names[:NAMES], source.templates)
        seconds, kept = timed(lambda: store(root, clip, table, "tokens"))
        half = store(root, clip, table.take(np.arange(min(64, len(table)))), "tokens", precision="fp16")
        pixels = store(root, clip, table, "pixels")
        size = kept.path.stat().st_size
        row("store patch features, s per image", f"{seconds / len(table):.3f}", len(table))
        row("size on disk, kB per image (fp32, fp16)", f"{kb(kept)}, {kb(half)}", len(table))
        parts, grown = shared(kept, o.readers)  # first: what this process maps would count as one more reader
        row(f"features in {o.readers} readers, PSS / one copy", f"{parts / size:.3f}", o.readers)
        row(f"all memory of {o.readers} readers, growth of PSS / one copy", f"{grown / size:.3f}", o.readers)
        row("read back bit-equal to the tower's", equal(clip, kept, pixels), len(table))
        for name, (slow, fast) in {
            "evaluation": (scored(clip, task.zeroshot, pixels), scored(clip, task.zeroshot, kept)),
            "training (promptfl)": (trained(clip, root, pixels, o.train), trained(clip, root, kept, o.train)),
        }.items():
            n = len(table) if name == "evaluation" else o.train
            row(f"{name} epoch, tower / store, CPU s", f"{slow:.2f} / {fast:.3f} = x{slow / fast:.0f}", n)
        row("logits in fp16 at scale 100, largest difference", moved(task.zeroshot, kept, half), len(half))
    return 0


def row(measure: str, value: str, n: int) -> None:
    """One line of the table, as soon as it is known."""
    say(f"| {measure} | {value} | {n} |")


def pictures(count: int) -> tuple[Source, Table]:
    """So many real images, digits and garments in turn, and the data set that names the classes."""
    import numpy as np

    from fedray.data.sources import Table, digits, fashion
    from fedray.errors import Unavailable

    source = digits()
    sets = [source.train.images, source.test.images]
    try:
        sets.insert(1, fashion().train.images)
    except Unavailable as missing:
        say(f"\n{missing}; digits alone\n")
    mixed = np.concatenate([np.asarray(images[: count // 2 + 1]) for images in sets])[:count]
    return source, Table(mixed, np.arange(len(mixed)) % NAMES)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds, and what it gave."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def kb(samples: Samples) -> str:
    """Per image."""
    return f"{samples.path.stat().st_size / 1e3 / len(samples):.1f}"


def equal(clip: Backbone, kept: Samples, pixels: Samples) -> str:
    """Whether some batches, encoded again, are the stored bits."""
    import numpy as np
    import torch

    for start in range(0, len(kept), max(64, len(kept) // 3 // 64 * 64)):
        rows = np.arange(start, min(start + 64, len(kept)))
        with torch.inference_mode():
            x = clip.encode_image(clip.preprocess(pixels.take(rows)), tokens="patches")
        got = kept.take(rows)
        if not (torch.equal(x.pooled, got.pooled) and torch.equal(x.tokens, got.tokens)):
            return f"no, images {start} ..."
    return "yes"


def scored(clip: Backbone, classes: torch.Tensor, samples: Samples) -> float:
    """CPU seconds of scoring every image by its pooled feature."""
    import numpy as np
    import torch

    @torch.inference_mode()
    def epoch() -> None:
        for start in range(0, len(samples), BATCH):
            x = samples.take(np.arange(start, min(start + BATCH, len(samples))))
            image = clip.encode_image(clip.preprocess(x) if isinstance(x, torch.Tensor) else x).pooled
            torch.nn.functional.normalize(image, dim=-1) @ classes.T

    return min(timed(epoch)[0] for _ in range(1 if samples.content == "pixels" else 3))


def trained(clip: Backbone, root: Path, samples: Samples, images: int) -> float:
    """CPU seconds of one client's epoch of PromptFL over the first images."""
    import numpy as np
    import torch

    from fedray.data.sources import digits
    from fedray.fed.client import Setup, fit, open_world
    from fedray.fed.local import Local
    from fedray.method import parameters, split
    from fedray.nn import backbone
    from fedray.nn.task import build_task
    from fedray.recipe import Recipe
    from fedray.types import Job

    task, path = build_task(clip, digits().names, digits().templates), root / "clip.safetensors"
    if not path.exists():
        backbone.save(clip, path)
    torch.manual_seed(0)
    method = Recipe("promptfl", n_ctx=4).build(clip, task)
    shards = (np.arange(images),)
    setup = Setup(path, "fp32", method, task, samples, samples, shards, shards, Local(batch=BATCH), 1, 0)
    world, (first, _) = open_world(setup), split(parameters(method), ())
    return timed(lambda: fit(world, Job(1, 0, first), {}))[0]


def shared(samples: Samples, readers: int) -> tuple[int, int]:
    """Bytes of PSS that so many readers have of the file, and by which all their memory grew, added up."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(readers), context.Queue()
    crowd = [context.Process(target=read, args=(samples, barrier, answers)) for _ in range(readers)]
    for one in crowd:
        one.start()
    found = [answers.get(timeout=600) for _ in crowd]
    for one in crowd:
        one.join()
    return sum(part for part, _ in found), sum(grown for _, grown in found)


def read(samples: Samples, barrier: Barrier, answers: multiprocessing.Queue[tuple[int, int]]) -> None:
    """Map the file, read all of it, and measure while all the others have, too."""
    import numpy as np

    samples.take(np.arange(1))  # what the first read imports is not what is measured
    barrier.wait()
    rollup = Path("/proc/self/smaps_rollup")
    before = pss(rollup) - pss(Path("/proc/self/smaps"), samples.path)
    barrier.wait()
    for start in range(0, len(samples), 16):
        samples.take(np.arange(start, min(start + 16, len(samples))))
    barrier.wait()
    answers.put((pss(Path("/proc/self/smaps"), samples.path), pss(rollup) - before))
    barrier.wait()


def pss(smaps: Path, of: Path | None = None) -> int:
    """Proportional set size in bytes: of all of a process, or of one mapped file."""
    total, counted = 0, of is None
    for line in smaps.read_text().splitlines():
        word = line.split()
        if not word[0].endswith(":"):
            counted = of is None or line.endswith(str(of))
        elif counted and word[0] == "Pss:":
            total += int(word[1]) * 1024
    return total


def moved(classes: torch.Tensor, kept: Samples, half: Samples) -> str:
    """Largest difference of 100 x cosine: pooled features with classes, patches with classes."""
    import numpy as np
    from torch.nn.functional import normalize

    most = [0.0, 0.0]
    for start in range(0, len(half), BATCH):
        rows = np.arange(start, min(start + BATCH, len(half)))
        for i, (a, b) in enumerate(zip(kept.take(rows), half.take(rows), strict=True)):
            gap = 100 * (normalize(a, dim=-1) @ classes.T - normalize(b, dim=-1) @ classes.T)
            most[i] = max(most[i], gap.abs().max().item())
    return "pooled {:.4f}, patches {:.4f}".format(*most)


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
