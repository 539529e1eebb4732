"""The notebooks run from top to bottom, in this environment, and are kept without what they printed."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "studies" / "notebooks"
NAMES = ("one_client", "reading_a_study")


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(book: Any, home: Path) -> str:
    """Execute with this very Python as kernel; what it printed."""
    with warnings.catch_warnings():  # of the client's own, about what it is built on
        warnings.simplefilter("ignore")
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        words = [sys.executable, "-Wignore", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        manager = AsyncKernelManager()
        manager._kernel_spec = KernelSpec(argv=words, display_name="this Python", language="python")
        client = NotebookClient(book, km=manager, timeout=240, resources={"metadata": {"path": str(home)}})
        asyncio.run(client.async_execute(cleanup_kc=True))
    return "".join(o["text"] for cell in book.cells for o in cell.get("outputs", []) if o["output_type"] == "stream")


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_kept_without_outputs(name: str) -> None:
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    (tmp_path / "jupyter_runtime_dir").mkdir(mode=0o700)
    book = read(name)
    printed = run(book, tmp_path)
    drawn = [o for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    if name == "one_client":
        assert "accuracy" in printed
        assert "it sends" in printed
        assert "prompts.local" in printed
        assert len(drawn) == 1
    else:
        assert printed.count("3 rounds") == 8
        assert len(drawn) == 3
    if keep := os.environ.get("FEDRAY_KEEP_NOTEBOOKS"):
        import nbformat

        nbformat.write(book, Path(keep) / f"{name}.ipynb")
