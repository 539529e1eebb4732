"""What a look at a file can't know, for nothing is asked of a cloud, a registry or a machine: said in one sentence."""

from __future__ import annotations

from fedray.clusterfile.marked import Document, mapping

SLURM = (
    "whether the partition, its GPUs and your hours are there, and whether all nodes see the same disk; sbatch tells"
)
OWN = "whether the machines answer by SSH, have Python, and see the same disk; ray up and the study's first second tell"
FIELDS = {
    "aws": ("InstanceType", "the AMI, groups, subnet and file system"),
    "gcp": ("machineType", "the boot image, subnetwork and file server"),
}
"""Provider -> the field of a node_config that names the machine, and what else must exist."""


def launched(document: Document) -> str:
    """Of a YAML for Ray's launcher: what must exist, what must be allowed, what it costs."""
    provider = str(document.find("provider", "type") or "")
    if provider not in FIELDS:
        return OWN
    field, others = FIELDS[provider]
    kinds = [mapping(kind) for kind in document.mapping("available_node_types").values()]
    machines = [
        f"{kind.get('max_workers') or 1} x {mapping(kind.get('node_config')).get(field, 'machines')}" for kind in kinds
    ]
    images = sorted({str(name) for field, name in document.mapping("docker").items() if str(field).endswith("image")})
    exist = ", ".join([" and ".join(images), others]) if images else others
    quota = " and ".join(machines)
    return f"whether {exist} exist, nor whether quota and spot hold {quota}, nor what it costs; ray up tells"


def rayjob(document: Document) -> str:
    """Of a RayJob: what the cluster must have."""
    groups = document.items("spec", "rayClusterSpec", "workerGroupSpecs")
    pods = sum(int(n) for group in groups if str(n := mapping(group).get("maxReplicas") or 1).isdecimal())
    return (
        "whether the images can be pulled, KubeRay's operator and the shared volume are there, and whether the pool "
        f"holds {pods} GPU pods; kubectl describe tells"
    )
