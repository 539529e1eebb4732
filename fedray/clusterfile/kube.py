"""A KubeRay RayJob: the fields of ray.io/v1 (as of KubeRay 1.6) and of the pods inside, and our rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedray.clusterfile import paths
from fedray.clusterfile.marked import Document, Finding, Where, image, items, known

TOP = ("apiVersion", "kind", "metadata", "spec")
JOB = (
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
)  # fmt: skip
CLUSTER = (
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
)  # fmt: skip
HEAD = ("enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template")
WORKER = (
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
)  # fmt: skip
AUTOSCALER = (
    "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
    "upscalingMode", "version", "volumeMounts",
)  # fmt: skip
AUTH = ("enableK8sTokenAuth", "mode", "secretName")
POD = (
    "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy",
    "enableServiceLinks", "ephemeralContainers", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers",
    "hostname", "imagePullSecrets", "initContainers", "nodeName", "nodeSelector", "os", "overhead", "preemptionPolicy",
    "priority", "priorityClassName", "readinessGates", "resourceClaims", "resources", "restartPolicy",
    "runtimeClassName", "schedulerName", "schedulingGates", "securityContext", "serviceAccount", "serviceAccountName",
    "setHostnameAsFQDN", "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds", "tolerations",
    "topologySpreadConstraints", "volumes",
)  # fmt: skip
CONTAINER = (
    "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports",
    "readinessProbe", "resizePolicy", "resources", "restartPolicy", "securityContext", "startupProbe", "stdin",
    "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeDevices", "volumeMounts",
    "workingDir",
)  # fmt: skip
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RAY = ("spec", "rayClusterSpec")
SHARED = ("persistentVolumeClaim", "nfs", "csi")
"""Volumes that several pods can share."""


def rules(document: Document) -> Iterator[Finding]:
    """Everything that breaks one, in no order."""
    yield from _fields(document)
    yield from _job(document)
    yield from _cluster(document)
    for where, container, pod in containers(document):
        yield from _container(document, where, container, pod)


def groups(document: Document) -> Iterator[Where]:
    """Where the head's group stands, and those of workers."""
    yield (*RAY, "headGroupSpec")
    for i in range(len(document.items(*RAY, "workerGroupSpecs"))):
        yield (*RAY, "workerGroupSpecs", i)


def containers(document: Document) -> Iterator[tuple[Where, dict[str, Any], dict[str, Any]]]:
    """The first container of every group, which runs Ray, with its place and its pod."""
    for where in groups(document):
        pod = document.mapping(*where, "template", "spec")
        found = document.find(*where, "template", "spec", "containers", 0)
        if isinstance(found, dict):
            yield (*where, "template", "spec", "containers", 0), found, pod


def _fields(document: Document) -> Iterator[Finding]:
    parts: list[tuple[Where, tuple[str, ...], str]] = [
        ((), TOP, "a RayJob"),
        (("spec",), JOB, "a RayJob's spec"),
        (RAY, CLUSTER, "rayClusterSpec"),
        ((*RAY, "autoscalerOptions"), AUTOSCALER, "autoscalerOptions"),
        ((*RAY, "authOptions"), AUTH, "authOptions"),
    ]
    for where in groups(document):
        head = where[-1] == "headGroupSpec"
        parts.append((where, HEAD if head else WORKER, "headGroupSpec" if head else "a worker group"))
        parts.append(((*where, "template", "spec"), POD, "a pod's spec"))
        boxes = document.items(*where, "template", "spec", "containers")
        for i in range(len(boxes)):
            parts.append(((*where, "template", "spec", "containers", i), CONTAINER, "a container"))
        if not boxes:
            yield Finding(document.line(*where), f"{where[-1]} has no template.spec.containers: no pod could start")
    for where, names, what in parts:
        yield from known(document.find(*where), names, what, document, *where)


def _job(document: Document) -> Iterator[Finding]:
    if (api := document.find("apiVersion")) != "ray.io/v1":
        yield Finding(document.line("apiVersion"), f"apiVersion {api} is not ray.io/v1, of KubeRay 1.0 and newer")
    for field in ("entrypoint", "rayClusterSpec"):
        if not document.find("spec", field):
            yield Finding(document.line("spec"), f"spec.{field} is missing; copy it from cluster/kuberay.yaml")
    mode = document.find("spec", "submissionMode")
    if mode is not None and mode not in MODES:
        yield Finding(document.line("spec", "submissionMode"), f"submissionMode {mode} is none of {', '.join(MODES)}")
    if document.find("spec", "shutdownAfterJobFinishes") is not True:
        text = "shutdownAfterJobFinishes must be true: the cluster would bill on when the study is done"
        yield Finding(document.line("spec", "shutdownAfterJobFinishes"), text)


def _cluster(document: Document) -> Iterator[Finding]:
    secret = any(v.get("name") == "RAY_AUTH_TOKEN" for _, c, _ in containers(document) for v in _env(c))
    if document.find(*RAY, "authOptions", "mode") != "token" and not secret:
        text = "authOptions.mode must be token: whoever reaches a port runs code as you; add authOptions: {mode: token}"
        yield Finding(document.line(*RAY, "authOptions"), text)
    if document.find(*RAY, "enableInTreeAutoscaling") is not True:
        text = "enableInTreeAutoscaling must be true, for workers to come and go"
        yield Finding(document.line(*RAY, "enableInTreeAutoscaling"), text)
    if not document.find(*RAY, "autoscalerOptions", "idleTimeoutSeconds"):
        text = "autoscalerOptions.idleTimeoutSeconds is not set; say 600"
        yield Finding(document.line(*RAY, "autoscalerOptions"), text)
    head: Where = (*RAY, "headGroupSpec")
    if document.find(*head, "enableIngress"):
        text = "enableIngress opens the dashboard to the network; leave it out, and use: kubectl port-forward"
        yield Finding(document.line(*head, "enableIngress"), text)
    if (kind := document.find(*head, "serviceType")) in ("LoadBalancer", "NodePort"):
        text = f"serviceType {kind} opens Ray to the network; leave it out, and use: kubectl port-forward"
        yield Finding(document.line(*head, "serviceType"), text)
    for where in groups(document):
        for field in ("replicas", "minReplicas"):
            if count := document.find(*where, field):
                text = f"{field} {count}: workers bill while nothing runs; set it to 0"
                yield Finding(document.line(*where, field), text)
    version, images = document.find(*RAY, "rayVersion"), [str(c.get("image", "")) for _, c, _ in containers(document)]
    for name in images:
        if "rayproject/ray:" in name and version and f":{version}" not in name:
            yield Finding(document.line(*RAY, "rayVersion"), f"rayVersion {version} is not that of image {name}")


def _container(document: Document, where: Where, container: dict[str, Any], pod: dict[str, Any]) -> Iterator[Finding]:
    yield from image(container.get("image"), document.line(*where, "image"))
    env = {str(v.get("name")): (i, v.get("value")) for i, v in enumerate(_env(container))}
    if env.get("RAY_AUTH_TOKEN", (0, None))[1]:
        line = document.line(*where, "env", env["RAY_AUTH_TOKEN"][0])
        yield Finding(line, "RAY_AUTH_TOKEN stands here for all to read; use authOptions: {mode: token}")
    index, place = env.get("FEDRAY_RUNS", (0, None))
    if not place:
        text = "FEDRAY_RUNS is not set: run folders would be lost with the pod; set it to a folder on a shared volume"
        yield Finding(document.line(*where, "env"), text)
        return
    kinds = {str(v.get("name")): v for v in items(pod.get("volumes")) if isinstance(v, dict)}
    mounts = {
        str(m.get("mountPath")): kinds.get(str(m.get("name")), {})
        for m in items(container.get("volumeMounts"))
        if isinstance(m, dict)
    }
    line = document.line(*where, "env", index)
    yield from paths.runs(str(place), line, list(mounts))
    for path, volume in mounts.items():
        if paths.inside(str(place), path) and not any(kind in volume for kind in SHARED):
            shown = ", ".join(key for key in volume if key != "name") or "no volume"
            yield Finding(
                line, f"FEDRAY_RUNS lies on {shown}, which is gone with its pod; take a persistentVolumeClaim"
            )


def _env(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in items(container.get("env")) if isinstance(v, dict)]
