"""From what the user typed to a folder or file on this machine.

An alias, a path, SCHEME:NAME or ORG/NAME, tried in this order. Where models come from is the business of
`ModelSource` plugins; this module only chooses one.
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from core.contracts.source import ModelReference, ModelSource, Progress
from core.errors import ConfigError, ModelNotFound

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]*):(.+)", re.DOTALL)
_IN_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.gguf)([:/].+)?")
_ACCEPTED = (
    "Accepted: an alias ({aliases}), a folder with config.json and *.safetensors, a .gguf file, ORG/NAME, or "
    "SCHEME:NAME ({schemes})"
)


def locate_model(
    name: str,
    revision: str | None,
    sources: Mapping[str, ModelSource],
    aliases: Mapping[str, str],
    progress: Progress,
) -> Path:
    """The local folder or file of a model; downloads it when it is nowhere on this machine.

    revision  branch, tag or commit, for sources that have them
    sources   by scheme; "" serves ORG/NAME
    aliases   short name -> any other form; an alias may name one more alias
    progress  told in one line when something slow begins

    Raises ModelNotFound with what was tried and what is accepted, ConfigError for a revision that would
    have no effect.
    """
    target = aliases.get(name, name)
    target = aliases.get(target, target)
    if target in aliases:
        raise ModelNotFound(f"{name!r} is an alias of an alias of an alias ({target}); name the model itself")
    path = os.path.expanduser(target)
    if target and "\0" not in target and os.path.exists(path):
        if revision is not None:
            raise ConfigError(
                f"revision {revision!r} was given for {path}, a local path, which has none; leave it out",
                setting="revision",
            )
        return Path(path)
    scheme, rest = _split(target, sources, aliases)
    return sources[scheme].fetch(ModelReference(scheme=scheme, name=rest, revision=revision), progress)


def _split(target: str, sources: Mapping[str, ModelSource], aliases: Mapping[str, str]) -> tuple[str, str]:
    """The source's scheme and the name within it. Raises ModelNotFound for everything that is neither."""
    accepted = _ACCEPTED.format(
        aliases=", ".join(sorted(aliases)) or "none is known",
        schemes=", ".join(scheme for scheme in sorted(sources) if scheme) or "none is installed",
    )
    if match := _SCHEME.fullmatch(target):
        if match[1].lower() in sources:
            return match[1].lower(), match[2]
        raise ModelNotFound(f"no source is named {match[1]!r:.80}. {accepted}")
    in_repository = _IN_REPOSITORY.fullmatch(target) is not None
    if target.startswith((".", "/", "~")) or (target.endswith(".gguf") and not in_repository):
        raise ModelNotFound(f"no file or folder is at {target!r:.200} (seen from {os.getcwd()}). {accepted}")
    if in_repository and "" in sources:
        return "", target
    close = get_close_matches(target, [*aliases], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise ModelNotFound(f"no model is named {target!r:.200}{hint} {accepted}")
