"""Ray's own look at a cluster launcher's YAML, without launching anything."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from typing import Any


def refused(config: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """What Ray would refuse at ``ray up``: where, and why; it stops at the first thing."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            validate_config(prepare_config(copy.deepcopy(dict(config))))
    except jsonschema.ValidationError as error:
        return [(tuple(error.absolute_path), f"Ray refuses it: {_line(error.message)}")]
    except (Exception, SystemExit) as error:  # its own checks raise whatever is at hand
        return [((), f"Ray refuses it: {_line(str(error) or heard.getvalue() or type(error).__name__)}")]
    return []


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
