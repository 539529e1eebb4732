"""A real run to be looked at: says where its metrics are, each of some rounds, and ends when there is a line to read.

python live.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

EVERY_S = 5
"""Ray forgets a gauge after two intervals, and looks at nodes every five seconds."""


def main(root: Path) -> None:
    os.environ["RAY_metrics_report_interval_ms"] = str(1000 * EVERY_S)  # noqa: SIM112 (its name)
    import ray

    from fedray.engine.cluster import attached
    from fedray.engine.driver import run
    from fedray.experiment import Experiment

    with attached(num_cpus=2):
        node = ray.nodes()[0]
        say(at=f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
        small = {"clip.name": "tiny", "partition.clients": 8, "attack.kind": "nan", "attack.share": 0.3}
        experiment = Experiment().override(**small, rounds=100_000)  # it goes on until it is told to stop
        started = run(experiment, study="live", runs=root / "runs", placement="packed", actors=2, cache=root / "cache")
        for done in started.rounds:
            say(round=done.round)
            if done.round == 5:
                break
            time.sleep(EVERY_S)
        sys.stdin.readline()
        started.rounds.close()


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
