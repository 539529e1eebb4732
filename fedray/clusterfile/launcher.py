"""Our rules for the YAML of Ray's cluster launcher: closed, by token, no cost when idle, safe to lose a node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import version

from fedray.clusterfile import paths
from fedray.clusterfile.marked import Document, Finding, image, items, known, mapping

STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
SETUPS = ("setup_commands", "head_setup_commands", "worker_setup_commands")
COMMANDS = ("initialization_commands", *SETUPS, *STARTS)
IMAGES = ("image", "head_image", "worker_image")
OPTIONS = ("run_options", "head_run_options", "worker_run_options")
TOKEN = "~/.ray/auth_token"  # noqa: S105 (its place)
CLOUDS = ("aws", "gcp")
LONGEST_IDLE = 60
ANY = (
    "type", "use_internal_ips", "use_external_head_ip", "disable_node_updaters", "disable_launch_config_check",
    "foreground_node_launch", "worker_liveness_check", "worker_rpc_drain",
)  # fmt: skip
PROVIDER = {
    "aws": (
        *ANY, "region", "availability_zone", "cache_stopped_nodes", "key_pair", "security_group", "cloudwatch",
        "aws_credentials",
    ),
    "gcp": (*ANY, "region", "availability_zone", "project_id", "cache_stopped_nodes", "gcp_credentials"),
    "local": (*ANY, "head_ip", "worker_ips", "coordinator_address", "external_head_ip"),
}  # fmt: skip
"""Fields of a provider that Ray 2.60 reads; its validator lets any pass."""


def rules(document: Document) -> Iterator[Finding]:
    """Everything that breaks one, in no order."""
    for rule in RULES:
        yield from rule(document)


def cloud(document: Document) -> str:
    """The provider's type."""
    return str(document.find("provider", "type") or "")


def settings(document: Document) -> Iterator[tuple[int, str]]:
    """Text in which environment variables are set: options of the containers, commands of set-up and start."""
    for option in OPTIONS:
        yield from document.words("docker", option)
    for command in COMMANDS:
        yield from document.words(command)


def _token(document: Document) -> Iterator[Finding]:
    said = [text for _, text in settings(document)]
    if not any("RAY_AUTH_MODE=token" in text for text in said):
        yield Finding(
            document.line("docker", "run_options") if document.find("docker") else document.line(STARTS[0]),
            "nothing sets RAY_AUTH_MODE=token: whoever reaches a port runs code as you; add it to docker.run_options "
            "(--env RAY_AUTH_MODE=token) or to the start commands",
        )
    mounts = document.mapping("file_mounts")
    if TOKEN not in mounts:
        text = f"no node gets the token; add {TOKEN}: {TOKEN}, and make it with: ray get-auth-token --generate"
        yield Finding(document.line("file_mounts"), text)
    for line, text in settings(document):
        if re.search(r"RAY_AUTH_TOKEN=[^$\s]", text):
            yield Finding(line, f"RAY_AUTH_TOKEN stands here for all to read; ship the file {TOKEN} by file_mounts")


def _ports(document: Document) -> Iterator[Finding]:
    for command in STARTS:
        for line, text in document.words(command):
            if found := re.search(r"--(?:dashboard-)?(?:agent-)?host[= ](0\.0\.0\.0|::|\*)", text):
                yield Finding(line, f"{found[0]} serves the dashboard to all; take 127.0.0.1, and: ray dashboard FILE")
    if cloud(document) in CLOUDS and not document.find(STARTS[0]):
        text = "without head_start_ray_commands Ray's own serve the dashboard on 0.0.0.0; copy them from cluster/"
        yield Finding(document.line(STARTS[0]), text)
    for option in OPTIONS:
        for line, text in document.words("docker", option):
            if re.match(r"(-p|--publish)\b", text):
                yield Finding(line, f"{text} opens a port; leave it out, and use a tunnel: ray dashboard FILE")


def _network(document: Document) -> Iterator[Finding]:
    if document.find("provider", "security_group") is not None:
        yield Finding(
            document.line("provider", "security_group"),
            "provider.security_group makes Ray open port 22 to 0.0.0.0/0; name a group of your own in each node_config "
            "as SecurityGroupIds",
        )
    for name in document.mapping("available_node_types"):
        where = ("available_node_types", name, "node_config")
        config = document.find(*where)
        if not isinstance(config, dict):
            continue
        if cloud(document) == "aws" and not (config.get("SecurityGroupIds") or config.get("NetworkInterfaces")):
            yield Finding(
                document.line(*where),
                f"{name} has no SecurityGroupIds, and Ray's own group opens port 22 to 0.0.0.0/0; name one of yours",
            )
        if cloud(document) == "gcp" and not any(
            isinstance(face, dict) and ("subnetwork" in face or "network" in face)
            for face in items(config.get("networkInterfaces"))
        ):
            yield Finding(
                document.line(*where),
                f"{name} has no networkInterfaces with a subnetwork, and the default network opens port 22 to "
                "0.0.0.0/0; name one of yours",
            )


def _cost(document: Document) -> Iterator[Finding]:
    idle = document.find("idle_timeout_minutes")
    if not isinstance(idle, int | float) or not 0 < idle <= LONGEST_IDLE:
        said = "is not set" if idle is None else f"is {idle}"
        text = f"idle_timeout_minutes {said}; workers that nobody uses must go within {LONGEST_IDLE} minutes: say 10"
        yield Finding(document.line("idle_timeout_minutes"), text)
    if cloud(document) in CLOUDS and document.find("provider", "cache_stopped_nodes") is not False:
        text = "provider.cache_stopped_nodes must be false: nodes that are only stopped still pay for their disks"
        yield Finding(document.line("provider", "cache_stopped_nodes"), text)
    head = document.find("head_node_type")
    for name, kind in (document.mapping("available_node_types")).items():
        least = mapping(kind).get("min_workers", 0)
        if name != head and least:
            line = document.line("available_node_types", name, "min_workers")
            yield Finding(line, f"{name} keeps {least} workers that bill while nothing runs; set min_workers to 0")
    if document.find("min_workers"):
        line = document.line("min_workers")
        yield Finding(line, f"min_workers {document.find('min_workers')} never lets workers go; set it to 0")


def _provider(document: Document) -> Iterator[Finding]:
    if names := PROVIDER.get(cloud(document)):
        yield from known(
            document.find("provider"), names, f"a provider of type {cloud(document)}", document, "provider"
        )


def _images(document: Document) -> Iterator[Finding]:
    for field in IMAGES:
        yield from image(document.find("docker", field), document.line("docker", field))


def _runs(document: Document) -> Iterator[Finding]:
    docker = document.mapping("docker")
    options = [text for option in OPTIONS for _, text in document.words("docker", option)]
    mounts = [found.split(":") for text in options for found in re.findall(r"(?:-v|--volume)[= ](\S+)", text)]
    places = [
        (line, found)
        for line, text in settings(document)
        for found in re.findall(r"FEDRAY_RUNS=[\"']?([^\s\"';]+)", text)
    ]
    if not places:
        where = ("docker", "run_options") if docker else ("setup_commands",)
        yield Finding(
            document.line(*where),
            "nothing sets FEDRAY_RUNS: run folders would be lost with their node; set it to a folder on a shared disk",
        )
    inside = [mount[1] for mount in mounts if len(mount) > 1]
    for line, place in places:
        yield from paths.runs(place, line, inside if docker else None)
    outside = [mount[0] for mount in mounts if len(mount) > 1 and any(paths.inside(p, mount[1]) for _, p in places)]
    said = " ".join(text for _, text in document.words("initialization_commands"))
    if cloud(document) in CLOUDS and outside and not re.search(rf"\bmount\b.*{re.escape(outside[0])}", said):
        text = f"{outside[0]} is a folder of each node's own; mount a shared disk there in initialization_commands"
        yield Finding(document.line("initialization_commands"), text)


def _files(document: Document) -> Iterator[Finding]:
    user = str(document.find("auth", "ssh_user") or "ubuntu")
    mounts = document.mapping("file_mounts")
    for target, source in mounts.items():
        line = document.line("file_mounts", target)
        yield from paths.of_one_machine(line, str(target), ("ray", user))
        yield from paths.of_one_machine(line, str(source), ())
        yield from paths.secret(line, str(source))
    for command in COMMANDS:
        for line, text in document.words(command):
            yield from paths.of_one_machine(line, text, ("ray", user))


def _installs(document: Document) -> Iterator[Finding]:
    texts = [text for command in SETUPS for _, text in document.words(command)]
    if not any("pip" in text and "install" in text and "fedray" in text for text in texts):
        text = "no setup command installs fedray on the nodes; add: pip install --no-cache-dir ~/fedray"
        yield Finding(document.line("setup_commands"), text)


def _accelerator(document: Document) -> Iterator[Finding]:
    """Ray asks AWS what a type's GPUs are called; Google Cloud's types have to say it, or none is ever brought."""
    if cloud(document) != "gcp":
        return
    kinds = [mapping(mapping(kind).get("resources")) for kind in document.mapping("available_node_types").values()]
    for line, text in settings(document):
        if (found := re.search(r"FEDRAY_ACCELERATOR=[\"']?([\w-]+)", text)) and not any(
            f"accelerator_type:{found[1]}" in kind for kind in kinds
        ):
            yield Finding(
                line,
                f'{found[0]} asks for nodes that no type offers; add "accelerator_type:{found[1]}": 1 to '
                "the resources of the one that has them",
            )


RULES: tuple[Callable[[Document], Iterator[Finding]], ...] = (
    _token, _ports, _network, _cost, _provider, _images, _runs, _files, _installs, _accelerator,
)  # fmt: skip


def notes(document: Document) -> Iterator[Finding]:
    """What is no mistake, and worth knowing."""
    head = document.find("head_node_type")
    for name, kind in (document.mapping("available_node_types")).items():
        config = mapping(mapping(kind).get("node_config"))
        spot = "InstanceMarketOptions" in config or "preemptible" in str(config) or "SPOT" in str(config)
        if name != head and not spot and cloud(document) in CLOUDS:
            text = f"{name} pays the full price; spot costs a third to a half, and studies resume"
            yield Finding(document.line("available_node_types", name), text)
    for field in IMAGES:
        name = document.find("docker", field)
        found = re.search(r"rayproject/ray:(\d+\.\d+\.\d+)", str(name))
        if found and found[1] != (here := version("ray")):
            text = f"{name} holds Ray {found[1]}, and here is {here}: ray job submit wants them equal"
            yield Finding(document.line("docker", field), text)
    said = " ".join(text for _, text in settings(document))
    if not re.search(r"FEDRAY_(GPU|CPU)S=", said):
        text = "FEDRAY_GPUS is not set: a study sees only the nodes that are there, and asks for no more"
        yield Finding(document.line("max_workers"), text)
    for variable in ("FEDRAY_CACHE", "FEDRAY_DATA"):
        if f"{variable}=" not in said:
            text = f"{variable} is not set: every node makes its own; a folder on the shared disk is made once"
            yield Finding(document.line("docker"), text)
