"""`fedray export`: learned prompts as one file that scores images with nothing else but the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import Positional, arg

from fedray.commands import options
from fedray.commands.found import find
from fedray.commands.options import Json, Runs
from fedray.console import complain, say, size, tell


@dataclass(frozen=True)
class Export:
    """Learned prompts as one safetensors file, for `fedray predict` and `fedray.load_prompts`.

    fedray export runs/single/otdpp-1f2e3d4c5b6a --client 3 --to client3.safetensors
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="its folder, or the beginning of its id")]
    client: Annotated[
        int | None, arg(metavar="K", help="whose view, private parameters included; the global one if not said")
    ] = None
    to: Annotated[Path | None, arg(metavar="FILE", help="RUN.safetensors or RUN-clientK.safetensors if not said")] = (
        None
    )
    runs: Runs = None
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        folder = find(self.run, options.place(self).root)
        from fedray.learned import from_run  # torch
        from fedray.promptfile import keep

        whose = "" if self.client is None else f"-client{self.client}"
        path = self.to or Path(f"{folder.run_id}{whose}.safetensors")
        about = keep(from_run(folder.path, self.client), path)
        if about.private:
            complain(
                f"{path} holds private parameters of client {self.client} ({', '.join(about.private)}), which never "
                "left it before; keep the file as you keep the client's images",
                kind="warning",
            )
        if self.json:
            told = {"view": about.view, "client": about.client, "round": about.round, "private": about.private}
            tell("export", file=path, bytes=path.stat().st_size, sha256=about.sha256, **told)
        else:
            view = "the global view" if self.client is None else f"client {self.client}'s view"
            say(f"saved · {path} · {size(path.stat().st_size)} · {view} after round {about.round}")
            say(f"next · fedray predict {quote(str(path))} IMAGE ...")
        return 0
