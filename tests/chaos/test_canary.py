"""Case 24 and the closed doors: patterns planted where things are private, looked for wherever they must not be."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import stat
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fedray.cli import main
from fedray.track import layout
from fedray.track.export import without_secrets
from fedray.track.run import RunFolder, runs

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]
Tally = Callable[[str, str, int, int], None]
NAMES = re.findall(
    r"\w+",
    """AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_CLIENT_SECRET GOOGLE_API_KEY
    GITHUB_TOKEN GH_TOKEN GITLAB_TOKEN HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY COMET_API_KEY
    NEPTUNE_API_TOKEN MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    DATABRICKS_TOKEN OPENAI_API_KEY ANTHROPIC_API_KEY PYPI_TOKEN TWINE_PASSWORD PGPASSWORD MYSQL_PWD
    REDIS_PASSWORD SLACK_TOKEN KAGGLE_KEY DOCKER_PASSWORD SSH_PASSPHRASE MY_SECRET SOMETHING_ELSE""",
)
SECRETS = {name: f"canary{i:02d}" + format(7**90 + i, "x")[:32] for i, name in enumerate(NAMES)}
PASSWORD = "p4ss/w0rd@canary"
METHOD = '''
    """FedOTP's prompts with a private parameter that nothing trains."""

    import numpy as np
    import torch

    from fedray.method import PromptMethod
    from fedray.methods.fedotp import fedotp


    def planted(clip, *, fail: bool = False) -> PromptMethod:
        """Like fedotp, with 32 bytes more."""
        if fail:
            raise RuntimeError("no answer from https://me:p4ss/w0rd@canary@db.example/x?token=canary-in-a-query")
        inner = fedotp(clip, n_ctx=2)
        secret = torch.from_numpy(np.random.default_rng(24).normal(size=8).astype(np.float32))
        inner.prompts.register_parameter("secret", torch.nn.Parameter(secret))
        return PromptMethod(inner.prompts, inner.head, private=["prompts.local.*", "prompts.secret"])
'''
PRIVATE = np.random.default_rng(24).normal(size=8).astype(np.float32).tobytes()
PIXELS = np.random.default_rng(25).integers(0, 256, 48, np.uint8)


class Said(NamedTuple):
    code: int
    text: str  # printed, and logged


Fedray = Callable[..., Said]
SMALL = ("--clip.name", "tiny", "--partition.clients", "3", "--split.shots", "2", "--rounds", "2")


@pytest.fixture
def fedray(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Fedray]:
    """The command line in a folder of its own, with 30 secrets in its environment, under an ordinary umask."""
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "planted.py").write_text(textwrap.dedent(METHOD))
    before, umask = signal.getsignal(signal.SIGTERM), os.umask(0o022)

    def run(*words: object) -> Said:
        capfd.readouterr()
        line = ("run", "--method", "planted.py", "--placement", "inline", *SMALL, *map(str, words))
        return Said(main(line), "".join(capfd.readouterr()) + caplog.text)

    yield run
    os.umask(umask)
    signal.signal(signal.SIGTERM, before)


def pictures(root: Path) -> None:
    """16 images of two classes; each holds 32 bytes of its pixels that occur nowhere else, and a note."""
    root.mkdir()
    lines, draw = ["image,label,split"], np.random.default_rng(0)
    for i in range(16):
        pixels = draw.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[0] = PIXELS.reshape(16, 3)
        note = PngImagePlugin.PngInfo()
        note.add_text("Comment", "canary-in-an-image")
        Image.fromarray(pixels).save(root / f"{i}.png", pnginfo=note)
        lines.append(f"{i}.png,{'cat' if i % 2 else 'dog'},{'train' if i < 10 else 'test'}")
    (root / "labels.csv").write_text("\n".join(lines))


def holders(root: Path, needles: dict[str, bytes]) -> set[tuple[str, str]]:
    """Which needle is in which file below `root`."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        (name, str(path.relative_to(root))) for path in files for name, n in needles.items() if n in path.read_bytes()
    }


def test_a_full_run(tmp_path: Path, fedray: Fedray, tally: Tally) -> None:
    """Nothing planted is in what is printed, sent to MLflow, or kept in the run's folder beside private/."""
    pictures(tmp_path / "set")
    code, text = fedray("--data.name", "folder", "--data.root", tmp_path / "set")
    assert code == 0, text
    needles = {name: value.encode() for name, value in SECRETS.items()}
    needles |= {"private": PRIVATE, "pixels": PIXELS.tobytes()[:32], "note": b"canary-in-an-image"}
    found = holders(tmp_path / "runs", needles)
    ours = {(name, path) for name, path in found if "/private/" in path}
    assert {name for name, _ in ours} == {"private"}  # else the test would look for nothing
    hits = {name for name, _ in found - ours} | {name for name, needle in needles.items() if needle in text.encode()}
    assert not hits, found - ours
    tally("24", "canaries not found (30 secrets, a private state, images)", len(needles), len(needles) - len(hits))
    # who else may look
    root = tmp_path / "runs"
    folders = [root, *root.iterdir(), *(root / "single").iterdir(), *(root / "mlartifacts").iterdir()]
    open_to_others = [str(path) for path in folders if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


def test_a_password_in_an_address(tmp_path: Path, fedray: Fedray, tally: Tally) -> None:
    """Neither a server that is down nor an error that quotes an address puts it anywhere."""
    address = f"http://me:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127.0.0.1:9"
    code, text = fedray("--mlflow", address, "--seed", 1)
    assert code == 0 and "not fully sent" in text, text
    needles = {"password": b"canary@", "encoded": b"%40canary", "half": b"w0rd", "query": b"canary-in-a-query"}
    assert not [needle for needle in needles.values() if needle in text.encode()], text
    with pytest.raises(RuntimeError, match="no answer"):
        fedray("--mlflow", "off", "--seed", 2, "--method.fail", "true")
    (failed,) = [folder for folder in runs(tmp_path / "runs") if folder.status["state"] == "failed"]
    assert failed.status["error"] == "RuntimeError: no answer from https://db.example/x"
    assert "no answer from https://db.example/x" in (failed.path / "log.txt").read_text()
    found = holders(tmp_path / "runs", needles)
    assert found == set()
    tally("24", "passwords in addresses not found", len(needles), len(needles) - len(found))


SHOWN = {
    "postgresql://me:p@ss/w0rd@db:5432/x": "postgresql://db:5432/x",
    "at http://u:p@h/x?token=abc and more": "at http://h/x and more",
    "sqlite:////tmp/x@y/mlflow.db": "sqlite:////tmp/x@y/mlflow.db",
    f"hub says hf_{'a' * 30} is stale": "hub says [hidden] is stale",
    f"ghp_{'b' * 36}, AKIA{'C' * 16}": "[hidden], [hidden]",
    "Authorization: Bearer abcdef1234567": "Authorization: Bearer [hidden]",
    "RAY_AUTH_TOKEN=deadbeef1234 ray status": "RAY_AUTH_TOKEN=[hidden] ray status",
    "{'password': 'x y'}": "{'password': [hidden]}",
    "tokens = self.encode_text(ids1, 2)": "tokens = self.encode_text(ids1, 2)",
    "method.max_tokens: 12345678": "method.max_tokens: 12345678",
}


def test_what_looks_like_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """In logs, with their tracebacks; and what only sounds like one is left alone."""
    log = logging.getLogger("fedray")
    for said, shown in SHOWN.items():
        assert without_secrets(said) == shown
        log.warning("%s", said)
        assert caplog.messages[-1] == shown
    try:
        raise ValueError("http://me:hunter2@h/x")
    except ValueError:
        log.exception("failed")
    assert "hunter2" not in caplog.text and "ValueError: http://h/x" in caplog.text


def test_folders_that_are_open_are_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run folder from a copy: for the owner alone again. Of the root, which may hold more, it is said."""
    root = tmp_path / "runs"
    folder = RunFolder.create(root, "study", "one", {"rounds": 1})
    for path in (root, folder.path.parent, folder.path, folder.private_dir):
        path.chmod(0o755)
    layout._told_if_open.cache_clear()
    RunFolder.create(root, "study", "one", {"rounds": 1})
    closed = (folder.path.parent, folder.path, folder.private_dir)
    assert {stat.S_IMODE(path.stat().st_mode) for path in closed} == {0o700}
    assert caplog.messages == [f"{root} is open to other users (mode 755); close it with: chmod 700 {root}"]
    RunFolder.create(root, "study", "two", {"rounds": 1})
    assert len(caplog.messages) == 1  # once


def test_environment_of_a_run_is_an_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder.create(tmp_path, "study", "one", {"rounds": 1}, env={"device": "cpu", **SECRETS})
    assert set(json.loads((folder.path / "env.json").read_text())) <= set(layout.ENVIRONMENT)
