"""`fedray completion`: what a shell needs to complete commands, their options and the fields of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from tyro.conf import Positional

from fedray.commands.options import Json
from fedray.console import say, tell

Shell: TypeAlias = Literal["bash", "zsh", "fish"]
Words: TypeAlias = Mapping[str, list[str]]
"""Command -> what may follow it."""

BASH = """\
_fedray() {{
    local words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _fedray fedray"""


@dataclass(frozen=True)
class Completion:
    """A script that lets a shell complete fedray's commands and options.

    source <(fedray completion bash)
    """

    shell: Positional[Shell]
    json: Json = False

    def __call__(self) -> int:
        """Do it."""
        from fedray.cli import COMMANDS, FIELDS  # which imports this file

        words = {name: following(cls, name in FIELDS) for name, cls in COMMANDS.items()}
        scripts: dict[str, Callable[[Words], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
        script = scripts[self.shell](words)
        if self.json:
            tell("completion", shell=self.shell, script=script)
        else:
            say(script)
        return 0


def following(command: type, takes_fields: bool) -> list[str]:
    """A command's choices, its options, and the fields of an experiment where it takes them."""
    from fedray.fields import leaves

    hints: dict[str, Any] = get_type_hints(command, include_extras=True)
    found: list[str] = []
    for field in fields(command):
        choices = [word for word in _literals(hints[field.name]) if isinstance(word, str)]
        positional = "Positional" in str(hints[field.name]) or "_PositionalMarker" in str(hints[field.name])
        found += choices if positional else [f"--{field.name.replace('_', '-')}"]
    return found + ([f"--{leaf.path}" for leaf in leaves()] if takes_fields else [])


def _literals(hint: Any) -> list[object]:
    inner = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is Literal:
        return list(get_args(hint))
    return [word for part in inner for word in _literals(part)] or (
        _literals(hint.__origin__) if hasattr(hint, "__metadata__") else []
    )


def bash(words: Words) -> str:
    """For ``source <(fedray completion bash)``."""
    cases = "\n".join(f'            {name}) words="{" ".join(after)}" ;;' for name, after in words.items())
    return BASH.format(commands=" ".join(words), cases=cases)


def zsh(words: Words) -> str:
    """The same, through zsh's own understanding of bash's completions."""
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{bash(words)}"


def fish(words: Words) -> str:
    """For ``fedray completion fish | source``."""
    lines = [f"complete -c fedray -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for name, after in words.items():
        lines += [f"complete -c fedray -n '__fish_seen_subcommand_from {name}' -a '{' '.join(after)}'"]
    return "\n".join(lines)
