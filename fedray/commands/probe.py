"""`fedray probe`: how much memory a client of an experiment takes, and where its clients go on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedray.commands import options
from fedray.commands.options import Config, Json, Protocol
from fedray.console import say, size, tell
from fedray.experiment import Experiment
from fedray.flags import resolve
from fedray.study import possible

if TYPE_CHECKING:
    from fedray.engine.probe import Peak, Report


@dataclass(frozen=True)
class Probe:
    """Measure a client's memory, and say where an experiment's clients go on this machine.

    fedray probe --method fedotp --clip.name ViT-B-16-quickgelu --local.batch 32
    """

    config: Config = None
    protocol: Protocol = None
    json: Json = False

    def __call__(self, words: Sequence[str]) -> int:
        """Do it with the fields that `words` set."""
        asked = resolve(self.config, words, options.names(self), protocol=self.protocol)
        return probed(asked.base, json=self.json)


def probed(experiment: Experiment, *, json: bool) -> int:
    """Measure one client in a process of its own, and say what follows; placement auto uses it from then on.

    Raises:
        BadInput: the experiment can't be built, or not even one client fits.
        Unavailable: data, weights, or the measuring process.
    """
    possible([experiment], "auto", None)
    from fedray.build import build
    from fedray.data.cache import default_cache
    from fedray.engine.probe import probe

    cache = default_cache()
    found = probe(experiment, build(experiment, cache=cache).setup, cache)
    if json:
        measured = found.measured
        tell(
            "probe",
            host=measured.host._asdict(),
            gpu=measured.gpu._asdict() if measured.gpu else None,
            gpus=measured.gpus,
            gpu_memory=measured.gpu_memory,
            free=found.free,
            actors=found.actors,
            per_gpu=found.per_gpu,
            packed=found.packed.reason,
            exclusive=found.exclusive if isinstance(found.exclusive, str) else found.exclusive.reason,
        )
    else:
        say("\n".join(lines(found)))
    return 0


def lines(found: Report) -> list[str]:
    """What was measured, what fits, what is chosen and why."""
    m = found.measured
    text = [f"memory · {_peak(m.host)}"]
    if m.gpu:
        text.append(f"GPU · {_peak(m.gpu)}; {m.gpus} of {size(m.gpu_memory)}")
    text.append(f"time · {m.train_s:.2f} s for a first step of training, {m.score_s:.2f} s for a batch of scoring")
    text.append(
        f"fits · {found.actors} actors into {size(found.free)} of free memory"
        + (f", {found.per_gpu} on each GPU" if m.gpu else "")
    )
    text.append(f"auto · packed: {found.packed.reason}, {most(found.packed.hosts)} each")
    other = found.exclusive if isinstance(found.exclusive, str) else f"exclusive: {found.exclusive.reason}"
    text.append(f"else · {other}")
    share = f"{found.packed.num_gpus:g} of a GPU and of its memory" if m.gpu else f"{found.packed.num_cpus:g} CPU"
    text.append(f"each actor · {share}, 1 thread (how many is part of a sum's last bits, so it never changes)")
    return text


def most(hosts: tuple[tuple[int, ...], ...]) -> str:
    """The largest number of clients in an actor."""
    count = max(map(len, hosts))
    return f"{count} client{'s' * (count != 1)}"


def _peak(peak: Peak) -> str:
    return (
        f"{size(peak.start)} for an actor, {size(peak.train)} more for a client's training step, "
        f"{size(peak.score)} for a batch of scoring"
    )
