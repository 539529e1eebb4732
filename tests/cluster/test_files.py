"""The cluster files that come along are fine, and each rule finds the file in which it is broken, by line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fedray.cli import main
from fedray.clusterfile import clouds, kube, launcher, unseen
from fedray.clusterfile.check import check
from fedray.clusterfile.marked import documents
from fedray.errors import BadInput

HOME = Path(__file__).resolve().parents[2] / "cluster"
SHIPPED = ["aws.yaml", "gcp.yaml", "local.yaml", "kuberay.yaml", "slurm.sh"]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_along_is_fine(name: str) -> None:
    report = check(HOME / name)
    assert report.errors == []
    assert any("# EDIT" in note.text for note in report.notes)


def test_nothing_else_lies_there() -> None:
    assert sorted(path.name for path in HOME.iterdir()) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_says_how_to_begin_what_it_costs_and_how_to_end(name: str) -> None:
    head = (HOME / name).read_text()[:2500]
    assert f"fedray cluster check cluster/{name}" in head
    assert "Cost" in head
    assert "ray get-auth-token --generate" in head or "token" in (HOME / name).read_text()
    assert any(word in head for word in (f"ray down cluster/{name}", f"kubectl delete -f cluster/{name}", "scancel"))


class Break(NamedTuple):
    """A file with one thing changed, and what is said of it."""

    file: str
    old: str
    new: str
    text: str  # of the error, and the whole of it is in the expected line
    at: str = ""  # text in the line that is named; `new` if not said


BREAKS = [
    # token
    Break("aws.yaml", "    - --env RAY_AUTH_MODE=token\n", "", "nothing sets RAY_AUTH_MODE=token", "run_options:"),
    Break("local.yaml", "export RAY_AUTH_MODE=token RAY", "export RAY", "nothing sets RAY_AUTH_MODE=token",
          "head_start_ray_commands"),
    Break("gcp.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "no node gets the token", "file_mounts:"),
    Break("aws.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=abc", "stands here for all"),
    Break("kuberay.yaml", "mode: token", "mode: disabled", "authOptions.mode must be token", "authOptions:"),
    Break("kuberay.yaml", '{name: RAY_USAGE_STATS_ENABLED, value: "0"}', "{name: RAY_AUTH_TOKEN, value: abc}",
          "RAY_AUTH_TOKEN stands here"),
    Break("slurm.sh", "export RAY_AUTH_MODE=token RAY", "export RAY", "RAY_AUTH_MODE=token is not exp", "set -euo"),
    # ports
    Break("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "serves the dashboard to all"),
    Break("aws.yaml", "    - -v /mnt", "    - -p 8265:8265\n    - -v /mnt", "-p 8265:8265 opens a port", "8265:8265"),
    Break("aws.yaml", "      SecurityGroupIds: [sg-0123456789abcdef0] # EDIT\n", "", "head has no SecurityGroupIds",
          "node_config: &node"),
    Break("aws.yaml", "  use_internal_ips: false", "  security_group: {GroupName: mine}", "makes Ray open port 22"),
    Break("gcp.yaml", "        - subnetwork: projects", "        - name: projects", "no networkInterfaces",
          "node_config: &node"),
    Break("kuberay.yaml", "    headGroupSpec:", "    headGroupSpec:\n      enableIngress: true", "enableIngress opens",
          "enableIngress"),
    Break("kuberay.yaml", "    headGroupSpec:", "    headGroupSpec:\n      serviceType: LoadBalancer",
          "serviceType LoadBalancer opens Ray", "serviceType"),
    Break("slurm.sh", '--num-gpus "$gpus"', "--dashboard-host=0.0.0.0", "served to the whole network"),
    # cost
    Break("aws.yaml", "idle_timeout_minutes: 10", "idle_timeout_minutes: 600", "idle_timeout_minutes is 600"),
    Break("gcp.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true", "still pay for their disks"),
    Break("aws.yaml", "min_workers: 0", "min_workers: 2", "gpu_worker keeps 2 workers"),
    Break("local.yaml", "min_workers: 0", "min_workers: 1", "min_workers 1 never lets workers go"),
    Break("kuberay.yaml", "minReplicas: 0", "minReplicas: 2", "minReplicas 2: workers bill"),
    Break("kuberay.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "would bill on"),
    Break("kuberay.yaml", "      idleTimeoutSeconds: 600", "      upscalingMode: Default", "idleTimeoutSeconds is not",
          "autoscalerOptions:"),
    Break("kuberay.yaml", "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "must be true, for w"),
    Break("slurm.sh", "#SBATCH --time=08:00:00\n", "", "#SBATCH --time is missing", "#SBATCH --output"),
    # images
    Break("aws.yaml", "worker_image: rayproject/ray:2.60.0-py311-gpu", "worker_image: rayproject/ray-ml:2.30.0-gpu",
          "ray-ml has no tags since Ray 2.50"),
    Break("gcp.yaml", "head_image: rayproject/ray:2.60.0-py311", "head_image: rayproject/ray:latest", "is not pinned"),
    Break("kuberay.yaml", "image: registry.example.com/fedray:0.1.0", "image: registry.example.com/fedray",
          "is not pinned"),
    Break("kuberay.yaml", "image: registry.example.com/fedray:0.1.0", "image: rayproject/ray:2.59.0-py311",
          "rayVersion 2.60.0 is not that of image", "rayVersion"),
    # where results go
    Break("aws.yaml", "FEDRAY_RUNS=/mnt/fedray/runs", "FEDRAY_RUNS=/tmp/runs", "every node has for itself"),
    Break("aws.yaml", "FEDRAY_RUNS=/mnt/fedray/runs", "FEDRAY_RUNS=/data/runs", "gone with its container"),
    Break("gcp.yaml", "FEDRAY_RUNS=/mnt/fedray/runs", "FEDRAY_RUNS=s3://bucket/runs", "they need a file system"),
    Break("aws.yaml", "    - --env FEDRAY_RUNS=/mnt/fedray/runs #", "    #", "nothing sets FEDRAY_RUN", "run_options:"),
    Break("gcp.yaml", "sudo mount -t nfs", "echo", "mount a shared disk there", "initialization_commands:"),
    Break("local.yaml", "FEDRAY_RUNS=/srv/fedray/runs", "FEDRAY_RUNS=runs", "another folder in every process", "- |"),
    Break("kuberay.yaml", "persistentVolumeClaim: {claimName: fedray}", "emptyDir: {}", "FEDRAY_RUNS lies on emptyDir",
          "name: FEDRAY_RUNS"),
    Break("kuberay.yaml", "value: /mnt/fedray/runs", "value: /results", "gone with its container"),
    Break("slurm.sh", "shared=/scratch/$USER/fedray", "shared=/tmp/fedray", "every node has for itself",
          "export FEDRAY_RUNS"),
    Break("slurm.sh", "export FEDRAY_RUNS=$shared/runs", "export FEDRAY_RUNS=$TMPDIR", "every node has for itself"),
    # paths and secrets of one's own
    Break("aws.yaml", "~/fedray: . #", "/home/alice/fedray: . #", "/home/alice is a folder of one machine's"),
    Break("gcp.yaml", "~/fedray: . #", "~/fedray: /Users/bob/code #", "/Users/bob is a folder of one machine's"),
    Break("local.yaml", "~/fedray: . #", "~/.aws: ~/.aws #", "would put your credentials on every node"),
    Break("slurm.sh", "$HOME/fedray-env/bin/activate", "/home/carol/env/bin/activate", "/home/carol is a folder of"),
    # nodes that could not run a study
    Break("aws.yaml", "pip install --no-cache-dir ~/fedray #", "true #", "no setup command installs fedray",
          "setup_commands:"),
    Break("gcp.yaml", "    # - --env FEDRAY_ACCELERATOR=L4", "    - --env FEDRAY_ACCELERATOR=L4",
          "asks for nodes that no type offers"),
    Break("slurm.sh", "srun --ntasks", "mpirun --ntasks", "not started by one srun", "python -u"),
    Break("slurm.sh", ' --min-nodes "$SLURM_JOB_NUM_NODES"', "", "before all nodes are there", "symmetric-run"),
    Break("slurm.sh", "#SBATCH --exclusive\n", "", "#SBATCH --exclusive is missing", "#SBATCH --output"),
    Break("slurm.sh", "umask 077", "#SBATCH --qos=x", "comes after the first command"),
    Break("slurm.sh", "umask 077", "if true; then", "bash -n", "python -u"),
    # fields
    Break("aws.yaml", "head_node_type: head", "head_node_typ: head", "Ray refuses it", "# fedray on AWS"),
    Break("aws.yaml", "max_workers: 8\nup", "max_workers: many\nup", "Ray refuses it: 'many' is not of type 'integer'",
          "max_workers: many"),
    Break("local.yaml", "  head_ip: 192.168.1.10 # EDIT\n", "", "Ray refuses it: Please supply a `head_ip`",
          "# fedray on machines"),
    Break("aws.yaml", "  use_internal_ips: false", "  use_internal_ip: false", "use_internal_ip is no field of a "
          "provider of type aws. Did you mean use_internal_ips?"),
    Break("gcp.yaml", "  project_id:", "  projectid:", "projectid is no field of a provider of type gcp"),
    Break("kuberay.yaml", "entrypoint: fedray", "entrypont: fedray", "entrypont is no field of a RayJob's spec. Did "
          "you mean entrypoint?"),
    Break("kuberay.yaml", "rayStartParams: {}", "rayStartParam: {}", "rayStartParam is no field of a worker group"),
    Break("kuberay.yaml", "env: *env", "envs: *env", "envs is no field of a container. Did you mean env?"),
    Break("kuberay.yaml", "K8sJobMode", "JobMode", "submissionMode JobMode is none of K8sJobMode"),
    Break("kuberay.yaml", "ray.io/v1\n", "ray.io/v1alpha1\n", "apiVersion ray.io/v1alpha1 is not ray.io/v1",
          "apiVersion"),
]  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS, ids=lambda b: f"{b.file}-{b.text[:30]}")
def test_a_broken_rule_is_told_with_its_line(broken: Break, tmp_path: Path) -> None:
    file = _changed(broken, tmp_path)
    rows = file.read_text().splitlines()
    told = [error for error in check(file).errors if broken.text in error.text]
    assert told, check(file).errors
    assert (broken.at or broken.new.strip()) in rows[told[0].line - 1]


CLOUDS = [
    Break("aws.yaml", "InstanceType: m6i", "InstanceTyp: m6i", "InstanceTyp is no field of EC2's RunInstances. Did you "
          "mean InstanceType?"),
    Break("aws.yaml", "{MarketType: spot}", "{MarketTyp: spot}", "MarketTyp is no field of InstanceMarketOptions"),
    Break("aws.yaml", "VolumeSize: 100", "VolumeSize: large", "Invalid type for parameter"),
    Break("gcp.yaml", "machineType: n2", "machinType: n2", "machinType is no field of Compute Engine's Instance. Did "
          "you mean machineType?"),
    Break("gcp.yaml", "onHostMaintenance:", "onHostMaintenanc:", "onHostMaintenanc is no field of Compute Engine's"),
    Break("gcp.yaml", "autoDelete: true", "autoDelete: sometimes", "autoDelete is 'sometimes', and must be of kind"),
]  # fmt: skip


@pytest.mark.parametrize("broken", CLOUDS, ids=lambda b: f"{b.file}-{b.text[:30]}")
def test_a_cloud_s_own_fields_are_known_offline(broken: Break, tmp_path: Path) -> None:
    provider = broken.file.partition(".")[0]
    pytest.importorskip(clouds.NEEDS[provider], reason=clouds.skipped(provider))
    test_a_broken_rule_is_told_with_its_line(broken, tmp_path)


def test_without_the_extra_it_says_what_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "find_spec", lambda name: None)
    assert check(HOME / "aws.yaml").skipped == [
        "node_config was not compared with the API of aws; pip install 'fedray[aws]'"
    ]
    assert check(HOME / "local.yaml").skipped == []


def test_another_ray_than_here_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "version", lambda name: "2.59.1")
    text = "rayproject/ray:2.60.0-py311 holds Ray 2.60.0, and here is 2.59.1: ray job submit wants them equal"
    assert text in [note.text for note in check(HOME / "aws.yaml").notes]


def test_full_price_is_a_note(tmp_path: Path) -> None:
    gone = Break("aws.yaml", "      InstanceMarketOptions: {MarketType: spot}\n", "", "")
    report = check(_changed(gone, tmp_path))
    assert report.errors == []
    assert any("gpu_worker pays the full price" in note.text for note in report.notes)


def test_one_type_of_gpu_is_named_where_ray_does_not_know_it(tmp_path: Path) -> None:
    asked = Break("gcp.yaml", "    # - --env FEDRAY_ACCELERATOR=L4", "    - --env FEDRAY_ACCELERATOR=L4", "")
    file = _changed(asked, tmp_path)
    text = file.read_text().replace(
        "    resources: {CPU: 8, GPU: 1} #", "    resources: {GPU: 1, 'accelerator_type:L4': 1} #"
    )
    file.write_text(text)
    assert check(file).errors == []


def test_what_nobody_was_asked_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(HOME / "aws.yaml").unseen == (
        "whether rayproject/ray:2.60.0-py311 and rayproject/ray:2.60.0-py311-gpu, the AMI, groups, subnet and file "
        "system exist, nor whether quota and spot hold 1 x m6i.xlarge and 8 x g5.xlarge, nor what it costs; ray "
        "up tells"
    )
    for name in SHIPPED:
        assert main(["cluster", "check", str(HOME / name)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unseen · ")]
        assert len(lines) == 1 and ": nobody was asked whether " in lines[0]


STUB = """#!/usr/bin/env bash
if [[ ${0##*/} == scontrol ]]; then printf 'n1\\nn2\\n'; exit; fi
printf '%s|' "${0##*/}" "$@" >> "$SEEN"; echo >> "$SEEN"
if [[ ${0##*/} == srun ]]; then while [[ $1 == --* ]]; do shift; done; exec "$@"; fi
"""


def test_the_slurm_script_starts_ray_once_and_hands_all_words_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol", "ray"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o700)
    script = tmp_path / "slurm.sh"
    text = (HOME / "slurm.sh").read_text().replace("/scratch/$USER", str(tmp_path))
    script.write_text(text.replace('source "$HOME/fedray-env/bin/activate"', ":"))
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SEEN": str(tmp_path / "seen"), "SLURM_JOB_NODELIST": "n[1-2]"}
    env |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "4"}
    subprocess.run(["bash", str(script), "s.py", "--root", "a b"], env=env, check=True, timeout=30)
    srun, ray = (tmp_path / "seen").read_text().splitlines()
    assert srun.startswith("srun|--ntasks=2|--ntasks-per-node=1|--kill-on-bad-exit=1|ray|symmetric-run|")
    assert ray == (
        "ray|symmetric-run|--address|n1:6379|--min-nodes|2|--num-cpus|8|--num-gpus|4|--|python|-u|s.py|--root|a b|"
    )
    assert (tmp_path / "fedray" / "runs").stat().st_mode & 0o077 == 0
    bare = subprocess.run(["bash", str(script)], env=env, check=False, capture_output=True, text=True, timeout=30)
    assert bare.returncode != 0 and "give a study, e.g. studies/alpha_sweep.py" in bare.stderr


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _changed(Break("aws.yaml", "idle_timeout_minutes: 10", "idle_timeout_minutes: 0", ""), tmp_path)
    line = file.read_text().splitlines().index("idle_timeout_minutes: 0 # a GPU that nobody uses for so long goes") + 1
    assert main(["cluster", "check", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.err == (
        f"error: {file}:{line}: idle_timeout_minutes is 0; workers that nobody uses must go within 60 minutes: say 10\n"
    )
    assert f"{file} · aws · 1 to mend" in shown.out
    assert main(["cluster", "check", str(file), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "aws" and [error["line"] for error in told["errors"]] == [line]
    assert main(["cluster", "check", str(HOME / "slurm.sh"), str(HOME / "kuberay.yaml")]) == 0
    assert main(["cluster", "check"]) == 2


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "local.yaml", "kuberay.yaml"])
def test_no_odd_value_anywhere_makes_the_check_itself_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "version", lambda name: "2.60.0")  # which reads files each time
    document = documents(HOME / name)[0]
    rules = kube.rules if name == "kuberay.yaml" else launcher.rules
    for where in document.lines:
        for odd in (None, 7, [None], {"x": None}):
            changed = copy.deepcopy(document.value)
            inner = changed
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = odd
            told = list(rules(document._replace(value=changed)))
            if name != "kuberay.yaml":
                told += launcher.notes(document._replace(value=changed))
            say = unseen.rayjob if name == "kuberay.yaml" else unseen.launched
            assert say(document._replace(value=changed))
            assert all(finding.line >= 1 and finding.text for finding in told)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [", r"a\.yaml:1: .*; give plain YAML"),
        ("a.yaml", "x: 1\ny: 2\nx: 3\n", r"a\.yaml:3: x is said twice"),
        ("a.yaml", "x: &x\n  y: *x\n", r"a\.yaml: holds an anchor inside itself"),
        ("a.yaml", "- 1\n", r"a\.yaml:1: holds no mapping"),
        ("a.yaml", "x: 1\n", r"a\.yaml:1: has neither a provider"),
        ("a.yaml", "x: !!python/object:os.system {}\n", r"a\.yaml:1: could not determine a constructor"),
        ("a.sh", "echo\n", r"a\.sh:1: has no #SBATCH line"),
    ],
)
def test_what_is_no_cluster_file(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        check(tmp_path / name)


def test_a_file_that_is_not_there() -> None:
    for name in ("none.yaml", "none.sh"):
        with pytest.raises(BadInput, match=r"can't be read \(no such file or directory\)"):
            check(Path(name))


def test_the_command_s_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from fedray.cli import main; assert main(['cluster', '--help']) == 0\n"
        "bad = {'ray', 'torch', 'botocore', 'mlflow'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def _changed(broken: Break, folder: Path) -> Path:
    text = (HOME / broken.file).read_text()
    assert broken.old in text, broken.old
    file = folder / broken.file
    file.write_text(text.replace(broken.old, broken.new, 1))
    return file
