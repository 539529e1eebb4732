"""Cases 14 and 15: files that were made to hurt. They are refused in a line; nothing that is in them is run."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from fedray.data import arrow, contents
from fedray.data import partition as partitions
from fedray.data.cifar import cifar10
from fedray.data.shifted import domainnet10, office_caltech10
from fedray.engine.search import open_study
from fedray.errors import BadInput, Unavailable
from fedray.experiment import Experiment, from_dict
from fedray.fed.participation import read_trace
from fedray.flags import resolve
from fedray.nn import backbone
from fedray.recipe import Recipe
from fedray.track import files, stores
from fedray.track.run import RunFolder

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore::UserWarning")]
Tally, Often = Callable[[str, str, int, int], None], Callable[[int, int], int]

# ---- 14: safetensors ----

LOAD = """
    import json, resource, sys
    from pathlib import Path
    from fedray.errors import BadInput, Unavailable
    from fedray.nn import backbone, weights
    from fedray.track import files

    def refused(path):
        passed = 0
        for load, kinds in (
            (weights.read_foreign, (BadInput, Unavailable)),
            (backbone.open_file, (BadInput, Unavailable)),
            (lambda p: files.from_safetensors(p.read_bytes()), (ValueError,)),
        ):
            try:
                load(path)
            except kinds as error:
                passed += chr(10) not in str(error)
        return passed

    first, *others = sorted(Path(sys.argv[1]).iterdir())
    passed = refused(first)  # what it imports is no part of what is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed += sum(map(refused, others))
    print(json.dumps([passed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def image(header: bytes | dict[str, object], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def lies(cuts: int) -> list[bytes]:
    good = files.to_safetensors({"a": torch.ones(64), "b": torch.ones(3, 5)})
    million = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6))
    return [good[: i * len(good) // cuts] for i in range(cuts)] + [
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + good[8:],
        image(b"{" + b" " * 30_000_000),
        image(b"{" + million + b"}"),
        image({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
        image({"a": entry(0, 16), "b": entry(32, 48)}, bytes(48)),
        image({"a": entry(0, 16, [2**62, 4])}, bytes(16)),
        image({"a": entry(0, 2**40)}, bytes(16)),
        image({"a": entry(0, 16, dtype="OBJECT")}, bytes(16)),
        image(b"[" * 100_000),
    ]


def test_safetensors_that_lie(tmp_path: Path, tally: Tally) -> None:
    """On all three ways in: a typed error of one line, and less than 50 MB of memory beyond the largest file."""
    hostile = lies(50)
    for i, raw in enumerate(hostile):
        (tmp_path / f"{i:02d}.safetensors").write_bytes(raw)
    command = [sys.executable, "-c", textwrap.dedent(LOAD), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    passed, grown = json.loads(done.stdout)
    tally("14", "safetensors that are cut or lie, on three ways in", 3 * len(hostile), passed)
    assert grown * 1024 < 50e6 + max(map(len, hostile)), f"{grown} kB"


# ---- 15: pickles ----


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, goal: Path) -> None:
        self.goal = goal

    def __reduce__(self) -> Any:
        return Path.write_text, (self.goal, "obeyed")


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    """Where a trap that snaps leaves its mark; that it would is tried first."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.read_text() == "obeyed"
    path.unlink()
    return path


def rejects(do: Callable[[], object]) -> bool:
    """Refused in words of ours."""
    try:
        do()
    except (BadInput, Unavailable, ValueError):
        return True
    return False


def test_weights(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """A pickle under every name that weights may have, in both of torch's formats, and as a plain pickle."""
    tried = passed = 0
    for suffix in (".pt", ".pth", ".bin", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        for write in (
            lambda p: torch.save({"a": Trap(goal)}, p),
            lambda p: torch.save({"a": Trap(goal)}, p, _use_new_zipfile_serialization=False),
            lambda p: p.write_bytes(pickle.dumps(Trap(goal))),
            lambda p: np.save(p.open("wb"), np.array([Trap(goal)]), allow_pickle=True),
        ):
            write(path)
            for load in (
                lambda p: backbone.load("ViT-B-32", str(p)),
                backbone.open_file,
                lambda p: files.from_safetensors(p.read_bytes()),
            ):
                tried += 1
                passed += rejects(lambda load=load, path=path: load(path)) and not goal.exists()  # type: ignore[misc]
    tally("15", "pickles as weights", tried, passed)


def extension(name: str, goal: Path) -> pa.Schema:
    """Columns of a partition, of which one claims to be an extension type that some reader unpickles."""
    facts = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Trap(goal))}
    return pa.schema(
        [
            pa.field("client", pa.int32(), metadata=facts),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("round", pa.int64()),
        ]
    )


@pytest.mark.parametrize(
    "name", ["arrow.py_extension_type", "ray.data.arrow_tensor_v2", "ray.data.arrow_pickled_object"]
)
def test_arrow_extension_types(name: str, tmp_path: Path, goal: Path, tally: Tally) -> None:
    schema, path, note = extension(name, goal), tmp_path / "hostile.parquet", tmp_path / "hostile.arrow"
    table = pa.table({"client": [0], "index": [0], "label": [0], "round": [1]}, schema=schema)
    pq.write_table(table.replace_schema_metadata({"fedray.schema": "1", "fedray.digest": "0"}), path)
    with pa.ipc.new_file(note, schema.with_metadata({"shapes": json.dumps({"client": []})})) as writer:
        writer.write_table(table)
    passed = rejects(lambda: partitions.load(path)) and not goal.exists()
    passed += rejects(lambda: files.from_parquet(path.read_bytes())) and not goal.exists()
    try:  # its columns are read as the numbers that they are, where nobody knows the type
        assert read_trace(path, 1, 1).there == {1: (0,)}
    except BadInput:
        assert not name.startswith("arrow.")
    assert contents._recalled(path) == contents.NOTHING  # a note is made anew
    with pytest.raises(Unavailable, match=r"has columns that fedray does not write|run again"):
        arrow.mapped(note, arrow.sha(note))
    tally("15", f"Arrow extension type {name}", 5, passed + 3 * (not goal.exists()))


@pytest.mark.parametrize("kind", [AttributeError, TypeError, KeyError, ValueError])
def test_an_extension_type_that_somebody_registered(kind: type[Exception], tmp_path: Path, goal: Path) -> None:
    """Ray registers types for tensors, which fail in ways of their own where a file only claims to hold them."""

    class Loud(pa.ExtensionType):  # type: ignore[misc]
        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Any:
            raise kind("not mine")

    pa.register_extension_type(Loud(pa.int32(), "fedray.test.loud"))
    try:
        test_arrow_extension_types("fedray.test.loud", tmp_path, goal, lambda *_: None)
    finally:
        pa.unregister_extension_type("fedray.test.loud")


def test_data_sets(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """CIFAR's Python form is read without obeying it; FedBN's lists are never opened."""
    root = tmp_path / "set" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (root / name).write_bytes(pickle.dumps({"data": Trap(goal), "labels": [1]}))
    passed = rejects(lambda: cifar10(tmp_path / "set")) and not goal.exists()
    for place in (tmp_path / "set", *(tmp_path / "set" / n for n in ("amazon", "webcam", "dslr", "caltech"))):
        place.mkdir(exist_ok=True)
        for split in ("train", "test"):
            (place / f"{place.name}_{split}.pkl").write_bytes(pickle.dumps(Trap(goal)))
    sources = [domainnet10, office_caltech10]
    for make in sources:
        passed += rejects(lambda make=make: make(tmp_path / "set")) and not goal.exists()  # type: ignore[misc]
    tally("15", "pickles in data sets", 1 + len(sources), passed)


def test_configurations(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """YAML tags are no instructions; a method's file is read when it is named, and imported when it is built alone."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(goal)!r}, 'w').write('obeyed')\ndef evil(clip, *, n: int = 1):\n    '''Evil.'''\n")
    config = tmp_path / "config.yaml"
    texts = [
        f"method: !!python/object/apply:pathlib.Path.write_text [{goal}, obeyed]",
        f"seed: !!python/object/apply:os.system ['touch {goal}']",
        f"seed: !!python/object/new:os.system ['touch {goal}']",
        "method: !!python/name:os.system",
        "seed: !!python/module:antigravity",
        "method: os.system",
        "method: fedray.methods.fedotp",
        "method: ../methods/fedotp",
    ]
    passed = 0
    for text in texts:
        config.write_text(text)
        passed += rejects(lambda: resolve(config, [], [])) and not goal.exists()
    tally("15", "code in a configuration", len(texts), passed)
    config.write_text(f"method: {evil}")
    assert resolve(config, [], []).base.method.options == {"n": 1}
    assert from_dict({"method": {"name": str(evil)}}).id != Experiment().id
    assert Recipe(str(evil)).name == "evil" and not goal.exists()


def test_run_folders(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """A run folder from somebody else: its configuration, its checkpoint, its private states."""
    folder = RunFolder.create(tmp_path / "runs", "study", "one", {"rounds": 1})
    (folder.path / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {goal}']")
    passed = rejects(lambda: RunFolder.open(folder.path).config) and not goal.exists()
    (folder.path / "config.yaml").write_text(yaml.safe_dump({"rounds": 1}))
    image = pickle.dumps({"ctx": Trap(goal)})
    there = folder.path / "ckpt" / "r000001"
    there.mkdir()
    body = {"schema": files.SCHEMA, "round": 1, "cohort": [0], "state": files.sha256(image), "private": {}}
    body["rows"] = {"bytes": 0, "sha256": files.sha256(b"")}
    own = files.sha256(files.to_line(body))
    (there / "manifest.json").write_bytes(files.to_line({**body, "self": own}))
    (there / "state.safetensors").write_bytes(image)
    (folder.path / "rows.jsonl").touch()
    passed += rejects(folder.latest) and not goal.exists()
    tally("15", "pickles in a run folder", 2, passed)


def test_search_state(tmp_path: Path, goal: Path, tally: Tally) -> None:
    """Optuna's journal is JSON; a pickle in its place is an error, and none of it is run."""
    passed = 0
    for name, raw in (
        ("plain", pickle.dumps(Trap(goal)) + b"\n"),
        ("snapshot", json.dumps({"op_code": 0, "worker_id": pickle.dumps(Trap(goal)).hex()}).encode() + b"\n"),
    ):
        (tmp_path / f"{name}.journal").write_bytes(raw)
        with pytest.raises(Unavailable, match=rf"{name}\.journal can't be read \(.*\); bring it back, or move it away"):
            open_study(tmp_path, name)
        passed += not goal.exists()
    tally("15", "pickles in a search's journal", 2, passed)


def test_mlflow_models(tmp_path: Path, goal: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of ours MLflow unpickles no model, whatever lies among the artifacts."""
    for name in stores.CLOSED:
        monkeypatch.setenv(name, "")
    stores.before_import()
    import mlflow.pyfunc

    model = tmp_path / "model"
    model.mkdir()
    (model / "python_model.pkl").write_bytes(pickle.dumps(Trap(goal)))
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl", "cloudpickle_version": "3"}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
    with pytest.raises(Exception, match=r"(?i)pickle|deserializ"):
        mlflow.pyfunc.load_model(str(model))
    tally("15", "MLflow model", 1, int(not goal.exists()))
