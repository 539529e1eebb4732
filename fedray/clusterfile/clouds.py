"""What a cloud's own API would refuse, found offline: AWS by botocore, Google Cloud by its published discovery file.

Both packages are extras of fedray; without one, `skipped` says what to install.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedray.clusterfile.marked import Document, Finding, Where, known
from fedray.errors import did_you_mean

NEEDS = {"aws": "botocore", "gcp": "googleapiclient"}
"""Provider -> the package that knows its shapes."""

RAYS = {"aws": ("SubnetIds",), "gcp": ()}
"""Fields of a node_config that Ray itself takes out before it asks the cloud."""

PLAIN: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "integer": (int, str), "number": (int, float, str),
}  # fmt: skip


def skipped(provider: str) -> str:
    """Why the cloud's shapes can't be looked at; empty if they can."""
    package = NEEDS.get(provider)
    if package is None or find_spec(package):
        return ""
    return f"node_config was not compared with the API of {provider}; pip install 'fedray[{provider}]'"


def shapes(document: Document) -> Iterator[Finding]:
    """What is wrong in each node_config."""
    provider = str(document.find("provider", "type") or "")
    check = {"aws": _aws, "gcp": _gcp}.get(provider)
    if check is None or skipped(provider):
        return
    for name in document.mapping("available_node_types"):
        where: Where = ("available_node_types", str(name), "node_config")
        config = document.find(*where)
        if isinstance(config, dict):
            own = {key: value for key, value in config.items() if key not in RAYS[provider]}
            yield from check(document, own, where)


def _aws(document: Document, config: dict[str, Any], where: Where) -> Iterator[Finding]:
    import botocore.session
    from botocore.validate import ParamValidator

    model: Any = botocore.session.Session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(config | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()
    for text in filter(None, report.split("\n")):
        unknown = re.match(r'Unknown parameter in (\S+): "(\w+)", must be one of: (.*)', text)
        if unknown:
            line = document.below(unknown[2], *where)
            parent = "" if unknown[1] == "input" else f" of {unknown[1]}"
            said = f"{unknown[2]} is no field{parent} of EC2's RunInstances. "
            yield Finding(line, said + did_you_mean(unknown[2], unknown[3].split(", ")))
        else:
            path = re.search(r"parameter (?:input\.)?([\w.\[\]]+)", text)
            last = re.sub(r"\[\d+\]", "", path[1]).split(".")[-1] if path else ""
            yield Finding(document.below(last, *where), f"{text}; see EC2's RunInstances")


def _gcp(document: Document, config: dict[str, Any], where: Where) -> Iterator[Finding]:
    import googleapiclient.discovery_cache as cache

    file = Path(cache.__file__).parent / "documents" / "compute.v1.json"
    schemas = json.loads(file.read_text())["schemas"]
    yield from _fits(document, config, schemas["Instance"], schemas, where)


def _fits(document: Document, value: Any, schema: Any, schemas: Any, where: Where) -> Iterator[Finding]:
    """Compare a value with a schema of the discovery file, all the way down."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    kind = schema.get("type", "object")
    if isinstance(value, list) and where[-1] == "scheduling":  # Ray takes a list here and joins it
        for i, item in enumerate(value):
            yield from _fits(document, item, schema, schemas, (*where, i))
    elif kind == "object" and isinstance(value, dict):
        fields = schema.get("properties")
        if fields is None:  # a map of the user's words
            return
        yield from known(value, list(fields), f"Compute Engine's {schema.get('id', where[-1])}", document, *where)
        for key, inner in value.items():
            if key in fields:
                yield from _fits(document, inner, fields[key], schemas, (*where, key))
    elif kind == "array" and isinstance(value, list):
        for i, item in enumerate(value):
            yield from _fits(document, item, schema.get("items", {}), schemas, (*where, i))
    elif "int64" in schema.get("format", "") and isinstance(value, int) and not isinstance(value, bool):
        return  # travels as a string, is written as a number
    elif not isinstance(value, PLAIN.get(kind, ())) or (isinstance(value, bool) and kind != "boolean"):
        yield Finding(document.line(*where), f"{where[-1]} is {value!r}, and must be of kind {kind}")
