"""Cluster files, read before money is spent: Ray's launcher YAML, a KubeRay RayJob, a Slurm script.

`check.check` is the whole of it; `marked` knows lines, `launcher`, `kube` and `slurm` hold our rules, `clouds` the
shapes of AWS and Google Cloud.
"""
