"""Bytes on disk: whole or not there, the same for the same content, and what they were when read back."""

import math
import os
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import Unavailable
from fedray.track import files
from fedray.types import GLOBAL

metrics = st.sampled_from(["train/loss", "eval/local/acc1", "time/fit_s"])
records = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.integers(-1, 999), metrics, st.floats(), st.integers(0, 2**40))
)


def bits(rows):
    return [(*row[:3], struct.pack("<d", math.nan if math.isnan(row[3]) else row[3]), row[4]) for row in rows]


@given(records)
def test_rows_keep_every_bit(rows):
    assert bits(files.from_lines(files.to_lines(rows))) == bits(rows)
    assert bits(files.from_parquet(files.to_parquet(rows))) == bits(rows)


@given(records, st.integers(-1, 3))
def test_one_client_is_picked_without_the_others(rows, client):
    picked = [row for row in rows if row[1] == client]
    assert bits(files.from_lines(files.to_lines(rows), client=client)) == bits(picked)


def test_table_has_the_promised_columns():
    table = files.to_table([(1, GLOBAL, "train/loss", 0.5, 3)])
    assert [str(field.type) for field in table.schema] == [
        "int32", "int32", "dictionary<values=string, indices=int32, ordered=0>", "double", "int64",
    ]  # fmt: skip
    assert table.column_names == ["round", "client", "metric", "value", "n"]
    assert table.schema.metadata == {b"fedray.schema": b"1"}
    assert files.to_table([]).schema == table.schema


def test_other_schema_version_is_refused():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"round": [1]}).replace_schema_metadata({"fedray.schema": "7"}), sink)
    with pytest.raises(ValueError, match=r"^schema version 7, this fedray reads 1$"):
        files.from_parquet(bytes(sink.getvalue()))


def test_cut_files_are_refused():
    image = files.to_parquet([(1, 0, "train/loss", 0.5, 3)] * 50)
    for end in range(0, len(image), 37):
        with pytest.raises(ValueError, match="not a Parquet file"):
            files.from_parquet(image[:end])
    state = files.to_safetensors({"ctx": torch.ones(4)})
    for end in range(len(state)):
        with pytest.raises(ValueError, match="not a safetensors image"):
            files.from_safetensors(state[:end])


def test_tensors_come_back_and_equal_ones_give_equal_bytes():
    base = torch.arange(6.0)
    tensors = {
        "b": base.view(2, 3).t(),
        "a": base,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.ones(0, 3),
    }
    image = files.to_safetensors(tensors)
    assert image == files.to_safetensors({name: tensors[name].clone() for name in sorted(tensors)})
    back = files.from_safetensors(image)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == tensors[name].dtype for name in tensors)
    assert files.from_safetensors(files.to_safetensors({})) == {}


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_replace_leaves_the_old_file_when_killed(tmp_path, monkeypatch, call):
    path = tmp_path / "status.json"
    files.replace(path, b"old")

    def die(*_, **__):
        raise KeyboardInterrupt

    if call == "rename":
        call = "replace"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, die)
        with pytest.raises(KeyboardInterrupt):
            files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable) as error:
        files.replace(tmp_path / "a", b"x")
    free = str(error.value).split("device, ")[1].split(" bytes")[0]
    assert str(error.value) == (
        f"cannot write {tmp_path}/a: no space left on device, {free} bytes free there; choose another place with --runs"
    )
    assert int(free.replace(",", "")) > 0


def test_append_cuts_what_a_kill_left(tmp_path):
    path = tmp_path / "rows"
    files.append(path, b"abc", at=0)
    files.append(path, b"XYZ-torn", at=3)
    files.append(path, b"def", at=3)
    assert path.read_bytes() == b"abcdef"


def test_a_planted_symlink_is_not_written_through(tmp_path):
    target = tmp_path / "victim"
    target.write_bytes(b"mine")
    (tmp_path / "rows").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        files.append(tmp_path / "rows", b"x", at=0)
    files.replace(tmp_path / "rows", b"new")
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "rows").is_symlink()


def test_files_are_for_the_owner_only(tmp_path):
    files.replace(tmp_path / "a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
