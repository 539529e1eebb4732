"""Cases 17, 18 and 19: what people write down and type. It is an experiment, or a mistake told in one line."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml

from fedray.cli import main
from fedray.data.partition import Partition
from fedray.experiment import Experiment, Server, as_dict, flatten, from_dict
from fedray.fields import leaves
from fedray.flags import resolve
from fedray.nn import backbone
from fedray.track.run import runs

pytestmark = pytest.mark.chaos
Tally, Often = Callable[[str, str, int, int], None], Callable[[int, int], int]


class Said(NamedTuple):
    code: int
    err: str


Fedray = Callable[..., Said]


@pytest.fixture
def fedray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fedray]:
    """The command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Said:
        capsys.readouterr()
        return Said(main([str(word) for word in words]), capsys.readouterr().err)

    yield run
    signal.signal(signal.SIGTERM, before)


# ---- 17: YAML ----

UNFOLDS = "local: &a0 {lr: 1}\n" + "".join(f"b{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 60))
WRONG = {
    b"seed: !!python/object/apply:os.getpid []": 1,
    b"seed: 1\nmethod: !!python/name:os.system": 2,
    UNFOLDS.encode(): 2,
    b"local: &a {lr: *a}\n": 1,
    b"seed: 1\nrounds: 2\nseed: 3\n": 3,
    b"local:\n\tlr: 1\n": 2,
    b"seed: 1\n" + b"# ten million bytes\n" * 500_000: 1,
    b"seed: " + b"[" * 50_000: 1,
    b"\xff\xfes\0e\0e\0d\0:\0 \0003\0": 1,
    b"rounds: 3\nseed: \xe9\n": 2,
    b"rounds: 3\nseed: 1\0\n": 2,
    b"seed: 1\n---\nseed: 2\n": 2,
    b"seed: !!binary aGVsbG8=\n": 1,
    b"seed: !!int x\n": 1,
    b"seed: !!bool maybe\n": 1,
    b"seed: !!timestamp x\n": 1,
    b"seed: " + b"9" * 5000: 1,
    b"rounds: 5\nlocal:\n  lr: .nan\n": 3,
    b"seed: 1:30\n": 1,
    b"<<: {seed: 1}\n": 1,
    b"rounds: no\n": 1,
    b"seed: 2020-01-01\n": 1,
    b"5\n": 1,
}
RIGHT: dict[bytes, dict[str, Any]] = {
    b"": {},
    b"\xef\xbb\xbfseed: 3\n": {"seed": 3},
    b"local:\n  lr: 1e-3\nrounds: 08\n": {"local.lr": 1e-3, "rounds": 8},
    b"data:\n  name: no\n  root: yes\n": {"data.name": "no", "data.root": "yes"},
    b"seed: &here 3\nsplit: {shots: ~}": {"seed": 3, "split.shots": None},
    b"method: !!str fedotp\r\nlocal.lr: .5\r\n": {"method.name": "fedotp", "local.lr": 0.5},
}


def test_wrong_yaml(tmp_path: Path, fedray: Fedray, tally: Tally) -> None:
    """Exit 2, one line, and in it the file with the line."""
    passed, config = 0, tmp_path / "c.yaml"
    for raw, line in WRONG.items():
        config.write_bytes(raw)
        code, err = fedray("run", "--config", "c.yaml")
        assert code == 2 and err.count("\n") == 1 and len(err) < 1000, err
        passed += f"c.yaml:{line}" in err
        assert f"c.yaml:{line}" in err, err
    tally("17", "YAML that is wrong", len(WRONG), passed)


def test_right_yaml(tmp_path: Path, tally: Tally) -> None:
    """Scalars are those of YAML 1.2, and nothing else changes."""
    passed, config = 0, tmp_path / "c.yaml"
    for raw, values in RIGHT.items():
        config.write_bytes(raw)
        got = flatten(as_dict(resolve(config, [], []).base))
        passed += {path: got[path] for path in values} == values
    tally("17", "YAML that is right", len(RIGHT), passed)


# ---- 18: generated configurations ----

ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    2,
    3,
    0.5,
    1.5,
    1e30,
    -0.0,
    2**63,
    10**30,
    "",
    "x",
    "a/b",
    "..",
    "é",
    None,
    True,
    False,
)
ODD += (float("nan"), float("inf"), "1e400", "digits", "fedotp", "\n", "0" * 300)
SMALL = {
    "clip": {"name": "tiny"},
    "partition": {"clients": 3},
    "split": {"shots": 2},
    "rounds": 1,
    "method": "promptfl",
}
KINDS = {
    "partition": [cls().kind for cls in get_args(get_args(Partition)[0])],
    "server": [cls().kind for cls in get_args(get_args(Server)[0])],
}
EXAMS = ("new", "inverted", "rotated", "noisy", "coarse", "digits", "nothing", " new")
LARGE = {"rounds", "partition.clients", "local.epochs", "local.steps", "local.batch", "split.shots", "data.views"}
"""Fields of which a legal value takes as long as it is large."""


def drawn(draw: random.Random) -> dict[str, Any]:
    """A small experiment of which some fields are odd, half of the time one that no field is called."""
    tree: dict[str, Any] = json.loads(json.dumps(SMALL))
    for name, kinds in KINDS.items():
        if draw.random() < 0.3:
            tree[name] = {**(tree.get(name) or {}), "kind": draw.choice([*kinds, "x"])}
    fields = [leaf for leaf in leaves() if leaf.path != "clip.weights"]  # which would be downloaded
    for leaf in draw.sample(fields, draw.choice((0, 1, 1, 1, 2, 3))):
        choices = leaf.rule.split(" | ") if " | " in leaf.rule else []
        value = draw.choice([*ODD, leaf.default, leaf.default, *choices, *choices, *choices])
        if leaf.path == "exams" and draw.random() < 0.5:
            value = ",".join(draw.sample(EXAMS, draw.randint(1, 3)))
        if value == "embedded":  # takes its time
            value = "tiny"
        if leaf.path in LARGE and isinstance(value, int | float) and not value < 100:
            value = 3
        *above, name = leaf.path.split(".")
        node = tree
        for part in above:
            node[part] = node.get(part) if isinstance(node.get(part), dict) else {}
            node = node[part]
        if draw.random() < 0.05:
            name += draw.choice(("x", ".y", " "))
        if not isinstance(node.get(name), dict):
            node[name] = value
    return tree


def test_generated_configurations(tmp_path: Path, fedray: Fedray, tally: Tally, often: Often) -> None:
    """One round and a folder that says the same again, or one line that names a field. Never a traceback."""
    count, wrong, ends = often(12, 1000), list[str](), dict.fromkeys((0, 2, 3, 4), 0)
    paths = [*flatten(as_dict(Experiment())), *(leaf.path for leaf in leaves()), "partition.", "server.", "method"]
    elsewhere = ("--placement", "inline", "--mlflow", "off")
    for i in range(count):
        tree = drawn(random.Random(1800 + i))
        Path("c.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
        try:
            code, err = fedray("run", "--config", "c.yaml", *elsewhere, "--study", f"s{i}")
        except Exception as error:
            wrong.append(f"{tree}: {error!r}")
            continue
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        named = any(path in err for path in paths) or any(repr(value) in err for value in flatten(tree).values())
        if code not in ends or len(lines) != (code != 0) or "Traceback" in err or (code == 2 and not named):
            wrong.append(f"{tree}: {code} {err}")
        for folder in runs(tmp_path / "runs", f"s{i}"):
            if from_dict(folder.config).run_id != folder.run_id:
                wrong.append(f"{tree}: {folder.config} is another run")
        ends[code] = ends.get(code, 0) + 1
    print("\n".join(wrong))
    assert ends[0] > count / 20 and ends[2] > count / 10, ends
    tally("18", f"generated configurations ({ends[0]} ran, {ends[2]} refused)", count, count - len(wrong))


def test_a_seed_of_any_size() -> None:
    assert backbone.load("tiny", None, seed=10**30).digest != backbone.load("tiny", None, seed=1).digest


# ---- 19: through a shell ----

TEXTS = ("fedotp", "promptfl", "otdpp")


def words(draw: random.Random) -> list[str]:
    """A command line with a handful of fields."""
    said: dict[str, object] = {
        "rounds": draw.randint(1, 99),
        "seed": draw.randint(0, 2**40),
        "local.lr": draw.choice((1e-3, 0.5, 2.5e-07, 1)),
        "fraction": draw.choice((0.1, "1e-1", ".5", 1)),
        "method": draw.choice(TEXTS),
        "method.n_ctx": draw.randint(1, 8),
        "partition.alpha": draw.choice((0.1, "1e3", 1000000)),
        "partition.clients": draw.randint(2, 40),
        "split.shots": draw.choice(("null", 4)),
        "data.root": draw.choice(("~", "data/x-1_2.3", "/srv/data,v2", "a:b@c%d+e=f")),
        "clip.weights": draw.choice(("openai", "laion2b_s34b_b88k", "./w.safetensors")),
        "exams": draw.choice(("new", "new,inverted", "noisy,coarse,rotated")),
    }
    chosen = draw.sample(sorted(said), draw.randint(1, 6))
    if "method" not in chosen:
        chosen = [name for name in chosen if name != "method.n_ctx"]
    line: list[str] = []
    for name in chosen:
        line += [f"--{name}={said[name]}"] if draw.random() < 0.5 else [f"--{name}", str(said[name])]
    return line


def test_words_survive_a_shell(tmp_path: Path, tally: Tally) -> None:
    """``ray submit`` joins the words by spaces, unquoted, and hands them to a shell."""
    passed, home = 0, {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for i in range(50):
        line = words(random.Random(1900 + i))
        joined = f"printf '%s\\n' {' '.join(line)}"
        got = subprocess.run(["sh", "-c", joined], capture_output=True, text=True, check=True, env=home).stdout
        again = got.splitlines() if line else []
        mine = [word.replace("~", str(tmp_path)) if word == "~" else word for word in line]
        passed += resolve(None, again, []).base == resolve(None, mine, []).base
        assert shlex.split(" ".join(line)) == line
    tally("19", "command lines through a shell", 50, passed)
