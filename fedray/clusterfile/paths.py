"""Where results go, and which paths mean something on another machine: rules for any kind of cluster file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from fedray.clusterfile.marked import Finding

OWN = ("/tmp", "/var/tmp", "/dev/shm", "/home", "/root", "/Users", "~")  # noqa: S108 (names, not files)
"""Where a node keeps what is its own."""

HOMES = re.compile(r"(?:^|[\s=:'\"])(/(?:home|Users)/([A-Za-z0-9._-]+))")
SECRETS = (".aws", ".config/gcloud", ".kube", ".ssh", ".netrc", ".docker/config.json", ".env")


def runs(place: str, line: int, mounts: Sequence[str] | None) -> Iterator[Finding]:
    """Run folders lie on what all nodes share, and outlive them.

    Args:
        place: what FEDRAY_RUNS says.
        line: where it says it.
        mounts: paths inside a container that come from outside; None: there is no container.
    """
    rule = "a study resumes from its run folders, on whatever node"
    if "://" in place:
        yield Finding(
            line,
            f"FEDRAY_RUNS is {place}, and {rule}: they need a file system; mount one (NFS, EFS, Filestore), and "
            "set FEDRAY_COPY to the object store for a copy of the results",
        )
    elif not place.startswith(("/", "~", "$")):
        yield Finding(line, f"FEDRAY_RUNS is {place}, which is another folder in every process; give a whole path")
    elif any(place == own or place.startswith(f"{own}/") for own in OWN):
        yield Finding(line, f"FEDRAY_RUNS is {place}, which every node has for itself; {rule}: name a shared disk")
    elif mounts is not None and not any(inside(place, mount) for mount in mounts):
        yield Finding(line, f"FEDRAY_RUNS is {place}, which is gone with its container; mount a shared disk there")


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return PurePosixPath(path).is_relative_to(PurePosixPath(folder))


def of_one_machine(line: int, text: str, users: Sequence[str]) -> Iterator[Finding]:
    """A home folder named in full exists where its owner works, and nowhere else."""
    for path, user in HOMES.findall(text):
        if user not in users:
            yield Finding(line, f"{path} is a folder of one machine's; write ~ or $HOME, or a path that all nodes have")


def secret(line: int, path: str) -> Iterator[Finding]:
    """Credentials of one's own do not travel."""
    if any(inside(path.lstrip("~/"), name) for name in SECRETS):
        yield Finding(line, f"{path} would put your credentials on every node; give the nodes a role of their own")
