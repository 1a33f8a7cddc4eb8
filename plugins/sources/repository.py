"""What hubs of model repositories have in common: how a name is read, and which files are fetched."""

import re
from dataclasses import dataclass

from core.errors import ModelNotFound

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.py"]
UNWANTED = ["[!0-9]*/*", "[0-9][!_]*/*", "*/*/*", "consolidated*.safetensors"]
"""Folders hold copies in other formats, but for those of sentence-transformers: 1_Pooling, 2_Dense."""

_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:[:/](?P<file>[^:]+))?")


@dataclass(frozen=True, kw_only=True)
class RepositoryName:
    """ORG/NAME, and the one GGUF file that was asked for, if any."""

    repository: str
    file: str | None


def parse(name: str) -> RepositoryName:
    """Read ORG/NAME, ORG/NAME:FILE.gguf or ORG/NAME/FILE.gguf. Raises ModelNotFound for anything else."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or (match["file"] and not match["file"].endswith(".gguf")):
        raise ModelNotFound(
            f"{name!r:.200} names no model; write ORG/NAME, or ORG/NAME:FILE.gguf for one file of it"
        )
    return RepositoryName(repository=match["repository"], file=match["file"])
