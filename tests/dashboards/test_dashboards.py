"""Every panel asks for something that there is: a real Prometheus, which has scraped a real run, is asked it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from fedray.commands.dashboard import Dashboard
from fedray.engine import meters
from fedray.types import GLOBAL, Round, Row

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "dashboards").glob("*.json"))
RULES = ROOT / "dashboards" / "rules.yml"
NEEDS_GPU = {"GPU utilization", "GPU memory used"}
VARIABLES = ("$SessionName", "$Instance", "$study", "$run")
PATIENCE_S = 90


def panels() -> list[tuple[str, dict[str, Any]]]:
    found = [(path.stem, panel) for path in BOARDS for panel in json.loads(path.read_text())["panels"]]
    return [(name, panel) for name, panel in found if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Panel, and what it asks for with every variable on All."""
    asked = []
    for board, panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for variable in VARIABLES:
                expr = expr.replace(variable, ".+")
            asked.append((f"{board}: {panel['title']}", expr))
    return asked


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_boards_keep_to_rays_conventions() -> None:
    boards = [json.loads(path.read_text()) for path in BOARDS]
    assert [path.stem for path in BOARDS] == ["cluster", "federation", "study"]
    assert len({board["uid"] for board in boards}) == 3
    for board in boards:
        assert board["schemaVersion"] == 27 and board["uid"].startswith("fedray")
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        names = {variable["name"] for variable in board["templating"]["list"]}
        assert {"datasource", "SessionName"} <= names
        used = {v for v in VARIABLES if v in json.dumps(board["panels"])}
        assert used == {f"${name}" for name in names - {"datasource"}}
    for _, panel in panels():
        assert panel["datasource"] == "${datasource}"
        assert (panel["gridPos"]["w"], panel["gridPos"]["h"]) == (12, 8)
        assert all('SessionName=~"$SessionName"' in target["expr"] for target in panel["targets"])


def a_round(clients: int) -> Round:
    rows = [Row(3, k, "eval/local/acc1", float(k), 10) for k in range(clients)]
    rows += [Row(3, GLOBAL, "eval/local/acc1", 50.0, 10), Row(3, GLOBAL, "eval/global/acc1", 40.0, 10)]
    rows += [Row(3, GLOBAL, "agg/accepted", 9.0, 10), Row(3, GLOBAL, "agg/rejected", 1.0, 10)]
    rows += [Row(3, GLOBAL, "agg/rejected/norm", 1.0, 10), Row(3, GLOBAL, "comm/up_bytes", 8.0, 10)]
    rows += [Row(3, GLOBAL, f"train/term{i}", 1.0, 10) for i in range(20)]
    return Round(3, {}, {}, tuple(range(clients)), tuple(rows))


def test_series_do_not_grow_with_clients() -> None:
    few, many = (meters.readings(a_round(clients), 0.1) for clients in (10, 1000))
    assert [(r.name, r.tag) for r in few] == [(r.name, r.tag) for r in many]
    assert len(many) <= 40


def test_worst_clients_and_quantiles_are_those_of_the_rows() -> None:
    told = {(r.name, r.tag and r.tag[1]): r.value for r in meters.readings(a_round(11), 0.25)}
    assert [told["worst_client", str(rank)] for rank in (1, 2, 5)] == [0, 1, 4]
    assert [told["accuracy_quantile", q] for q in ("0", "0.1", "0.5", "1")] == [0, 1, 5, 10]
    assert told["update_share", "accepted"] == 0.9
    assert told["failures", "rejected/norm"] == 1
    assert told["round_seconds", "commit"] == 0.25


def test_who_diverged_is_the_worst() -> None:
    done = a_round(10)
    done = done._replace(rows=(*done.rows, Row(3, 10, "eval/local/acc1", float("nan"), 10)))
    told = {(r.name, r.tag and r.tag[1]): r.value for r in meters.readings(done, 0.0)}
    assert told["worst_client", "1"] == 10


def test_a_run_outside_ray_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(meters, "_metric", lambda *_: pytest.fail("a metric was made"))
    folder: Any = None  # is not even looked at
    meters.metered(folder, 3)(a_round(3), 0.1)


def test_command_writes_boards_and_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Dashboard(to=tmp_path / "new")() == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(p.name for p in [*BOARDS, RULES])
    assert "prometheus.yml" in capsys.readouterr().out
    (tmp_path / "new" / "rules.yml").write_text("mine")
    assert Dashboard(to=tmp_path / "new", json=True)() == 0
    assert (tmp_path / "new" / "rules.yml").read_text() == RULES.read_text()
    assert len(json.loads(capsys.readouterr().out)["files"]) == 4


# ---- Prometheus ----


def tool(name: str) -> str:
    if found := shutil.which(name):
        return found
    pytest.skip(f"{name} is not installed: apt-get install prometheus")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def asked(port: int, query: str) -> list[dict[str, Any]]:
    """What an instant query finds."""
    with urlopen(f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': query})}", timeout=20) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def until(what: Callable[[], Any], reason: Callable[[], str]) -> None:
    """Wait until `what` is true; an error of the network is no answer yet."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if what():
                return
        except (URLError, OSError):
            pass
        time.sleep(1)
    pytest.fail(reason())


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Prometheus that scrapes a run, which has done some rounds and goes on."""
    program, place, port = tool("prometheus"), tmp_path_factory.mktemp("live"), free_port()
    run = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("live.py")), str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdin and run.stdout
    server = None
    try:
        target = json.loads(run.stdout.readline())["at"]
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [target]}]}],
        }
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        files = [f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/tsdb"]
        with (place / "prometheus.log").open("w") as log:
            server = subprocess.Popen([program, *files, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
        for line in run.stdout:
            if json.loads(line)["round"] == 5:
                break
        yield port
    finally:
        run.stdin.close()  # ends the run
        run.stdout.close()
        if server:
            server.terminate()
            server.wait(30)
        try:
            run.wait(60)
        finally:
            run.kill()
            run.wait(10)


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_every_panel_finds_something(prometheus: int) -> None:
    """All queries at one moment; those of GPUs, which are not there, must at least be understood."""

    def empty() -> list[str]:
        found = {panel: asked(prometheus, query) for panel, query in queries()}
        return [panel for panel, rows in found.items() if not rows and panel.partition(": ")[2] not in NEEDS_GPU]

    until(lambda: not empty(), lambda: f"panels without data: {empty()}")
    worst = {row["metric"]["rank"]: float(row["value"][1]) for row in asked(prometheus, "ray_fedray_worst_accuracy")}
    assert worst == dict(sorted(worst.items(), key=lambda one: one[1])) and len(worst) == 5
    named = asked(prometheus, "count({__name__=~'ray_fedray_.+'}) by (run)")
    assert [int(row["value"][1]) <= 40 for row in named] == [True]


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_rules_see_the_run_and_the_refused(prometheus: int) -> None:
    until(lambda: asked(prometheus, "fedray:round_seconds:usual"), lambda: "the usual round is not recorded")
    expr = {rule.get("alert", rule.get("record", "")): rule["expr"] for rule in rules()}
    for name in ("FedrayStalled", "FedrayNotFinite", "FedrayRefused"):
        assert asked(prometheus, expr[name]) == []  # understood, and nothing is wrong
    assert asked(prometheus, expr["FedrayRefused"].replace("0.5", "0.9"))  # a third of the clients send NaN
    slow = expr["FedrayStalled"].replace("10 * fedray", "0 * fedray")
    assert slow != expr["FedrayStalled"] and asked(prometheus, slow)


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    """And each alert fires on made-up series that show its trouble, and on no others."""
    promtool = tool("promtool")
    checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "test.yml").write_text(yaml.safe_dump(made_up()))
    tested = subprocess.run([promtool, "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def made_up() -> dict[str, Any]:
    """Promtool's own test: series a minute apart, and which alerts fire after 30 of them."""
    tags = '{study="s",run="r",WorkerId="w"'

    def case(series: dict[str, str], alerts: dict[str, dict[str, str]]) -> dict[str, Any]:
        own = {"study": "s", "run": "r", "WorkerId": "w"}
        every = [rule["alert"] for rule in rules() if "alert" in rule]
        severity = {rule["alert"]: rule["labels"]["severity"] for rule in rules() if "alert" in rule}
        fire = [
            {"eval_time": "30m", "alertname": name, "exp_alerts": [
                {"exp_labels": own | {"severity": severity[name]} | alerts[name]}] if name in alerts else []}
            for name in every
        ]  # fmt: skip
        return {
            "interval": "1m",
            "input_series": [{"series": f"ray_fedray_{name}", "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {"expr": f'ALERTS{{alertname="{one["alertname"]}",alertstate="firing"}}', "eval_time": "30m",
                 "exp_samples": [{"labels": _labels(one["alertname"], a["exp_labels"]), "value": 1}
                                 for a in one["exp_alerts"]]} for one in fire
            ],
        }  # fmt: skip

    def running(**more: str) -> dict[str, str]:
        usual = {
            f"round{tags}}}": "0+1x40", f"planned_rounds{tags}}}": "100x40", f"ended_seconds{tags}}}": "0+60x40",
            f'round_seconds{tags},phase="whole"}}': "60x40", f'accuracy{tags},view="local"}}': "80x40",
            f'train{tags},term="loss"}}': "1x40", f'update_share{tags},outcome="accepted"}}': "1x40",
        }  # fmt: skip
        return usual | {key.replace("_AT_", tags): value for key, value in more.items()}

    stalled = running(**{f"ended_seconds{tags}}}": "0+60x5 300x40", f"round{tags}}}": "0+1x5 5x40"})
    lost = {key: f"{values.partition('x')[0]}x22" for key, values in running().items()}
    nan = running(**{f'train{tags},term="loss"}}': "1x20" + 20 * " NaN"})
    falling = running(**{f'accuracy{tags},view="local"}}': "80x20 60x20"})
    refused = running(**{f'update_share{tags},outcome="accepted"}}': "0.4x40"})
    return {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            case(running(), {}),
            case(stalled, {"FedrayStalled": {}}),
            case(lost, {"FedrayLost": {}}),
            case(nan, {"FedrayNotFinite": {"term": "loss"}}),
            case(falling, {"FedrayFalling": {"view": "local"}}),
            case(refused, {"FedrayRefused": {"outcome": "accepted"}}),
        ],
    }


def _labels(alert: str, labels: dict[str, str]) -> str:
    both = {"__name__": "ALERTS", "alertname": alert, "alertstate": "firing"} | labels
    return "{" + ", ".join(f'{name}="{value}"' for name, value in both.items()) + "}"
