"""Studies and dashboards that come along: beside the package in a clone, below share/fedray where a wheel put them."""

from __future__ import annotations

import ast
import site
import sys
from importlib import metadata
from pathlib import Path

SHARE = "share/fedray/"


def studies() -> dict[str, Path]:
    """Every study by name; benchmarks, which measure machines, are left out."""
    return {path.stem: path for path in _there("studies", ".py") if not path.stem.startswith("bench_")}


def dashboards() -> list[Path]:
    """Grafana's dashboards, and Prometheus' rules."""
    return [path for suffix in (".json", ".yml") for path in _there("dashboards", suffix)]


def _there(folder: str, suffix: str) -> list[Path]:
    clone = Path(__file__).resolve().parents[1] / folder
    in_clone = (clone.parent / "pyproject.toml").is_file()
    return sorted(clone.glob(f"*{suffix}") if in_clone else _installed(f"{SHARE}{folder}/", suffix))


def _installed(share: str, suffix: str) -> list[Path]:
    """Where the installer noted that it put them; else in the places where installers put such files."""
    try:
        files = metadata.files("fedray") or []
    except metadata.PackageNotFoundError:
        files = []
    noted = [Path(str(file.locate())) for file in files if share in file.as_posix() and file.suffix == suffix]
    if there := [path.resolve() for path in noted if path.is_file()]:
        return there
    roots = (Path(__file__).resolve().parents[1], Path(sys.prefix), Path(site.getuserbase()))  # the first: pip --target
    return next((found for root in roots if (found := [*(root / share).glob(f"*{suffix}")])), [])


def question(path: Path) -> str:
    """First line of a study's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
