"""What was learned, as MLflow's models: the global prompts of a run, and the best of a study under an alias.

    LoggedModel "fedotp-digits-a-0-1-s1"            prompts/global.safetensors; metrics final/... are linked to it
    registered model "fedray.<study>.<data>"        a version for each run that was the best; alias champion: the best

Nothing here holds code: the artifact is safetensors, without a flavour that could be loaded and run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedray.track import export, layout, stores, whole
from fedray.track.names import HEADLINES, cell
from fedray.track.run import GLOBAL, RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS, KIND = "champion", "fedray-prompts"


def logged(client: MlflowClient, experiment: str, run_id: str, folder: RunFolder) -> LoggedModel | None:
    """The model of a finished run, found or made, with its file; None where a run has left no prompts.

    Raises:
        Unavailable: the file is damaged.
    """
    files = list(export.plain(folder.prompts_path))
    if not files:
        return None
    whole.prompts(folder.path)
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    if found:
        model = found[0]
    else:
        name = re.sub(r"[^a-z0-9_]+", "-", (cell(folder.config).title or folder.run_id).lower()).strip("-")
        tags = export.tags(folder.config, folder.study, folder.run_id)
        model = client.create_logged_model(experiment, name, run_id, tags=tags, model_type=KIND)
    if str(model.status) != "READY":  # killed between the two: the file is sent once more, over the old one
        client.log_model_artifact(model.model_id, str(files[0]))
        model = client.finalize_logged_model(model.model_id, "READY")
    return model


def crown(client: MlflowClient, study: str, home: Path, uri: str) -> None:
    """Let the alias point at the best finished run on each data set, by its last headline score."""
    for data, folder in _best(home).items():
        known = stores.recall(folder.path, uri)
        if "model_id" not in known:
            continue
        name = f"fedray.{study}.{data}"
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        same = [v for v in client.search_model_versions(f"name = '{name}'") if v.run_id == known["run_id"]]
        version = same[0] if same else _version(client, name, known)
        if version.version != _crowned(client, name):
            client.set_registered_model_alias(name, ALIAS, version.version)


def _version(client: MlflowClient, name: str, known: dict[str, str]) -> ModelVersion:
    """By the place of its file: a local registry looks models:/ addresses up in whatever store is mlflow's default."""
    place = client.get_logged_model(known["model_id"]).artifact_location
    named = {"run_id": known["run_id"], "model_id": known["model_id"]}
    return client.create_model_version(name, place, await_creation_for=0, **named)  # a store of files has it at once


def _crowned(client: MlflowClient, name: str) -> str | None:
    aliases: dict[str, str] = client.get_registered_model(name).aliases
    return aliases.get(ALIAS)


def _best(home: Path) -> dict[str, RunFolder]:
    """By data set; of equal scores the first by name."""
    best: dict[str, tuple[float, RunFolder]] = {}
    for score, folder in _scored(home):
        data = cell(folder.config).data
        if data and (data not in best or score > best[data][0]):
            best[data] = score, folder
    return {data: folder for data, (_, folder) in best.items()}


def _scored(home: Path) -> Iterator[tuple[float, RunFolder]]:
    """Finished runs with the score that a table shows first: of clients' own models, else of the global one."""
    for path in layout.slugs(home):
        if not layout.is_run(path):
            continue
        folder = RunFolder(path)
        if folder.state != "done":
            continue
        scores = {row[2]: row[3] for row in export.final(folder.records(client=GLOBAL))}
        heads = (f"final/{view}/{head}" for view in ("local", "global") for head in HEADLINES)
        if (score := next((scores[name] for name in heads if name in scores), None)) is not None and score == score:
            yield score, folder
