"""modelscope:ORG/NAME: models of ModelScope, kept in that library's own cache."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from core.contracts.source import CachedModel, ModelReference, ModelSource, Progress
from core.errors import ModelNotFound
from plugins.sources.repository import UNWANTED, WANTED, parse


class ModelScopeSource(ModelSource):
    """modelscope.cn, through the modelscope package."""

    contract: ClassVar[tuple[int, int]] = (1, 0)
    scheme: ClassVar[str] = "modelscope"
    summary: ClassVar[str] = "modelscope:ORG/NAME or modelscope:ORG/NAME:FILE.gguf: ModelScope"

    def fetch(self, reference: ModelReference, progress: Progress) -> Path:
        wanted = parse(reference.name)
        if find_spec("modelscope") is None:
            raise ModelNotFound(
                f"modelscope:{reference.name} needs the modelscope package; install it with  "
                'pip install "core[modelscope]"'
            )
        progress(f"fetching {reference.name} from ModelScope, unless it is cached")
        patterns = WANTED if wanted.file is None else [wanted.file]
        try:
            folder = Path(
                import_module("modelscope").snapshot_download(
                    wanted.repository,
                    revision=reference.revision,
                    allow_file_pattern=patterns,
                    ignore_file_pattern=UNWANTED if wanted.file is None else None,
                )
            )
        except Exception as error:  # its own classes, those of requests, and the standard library's
            said = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelNotFound(f"{reference.name} could not be fetched from ModelScope: {said}") from error
        if wanted.file is not None and not (folder / wanted.file).is_file():
            raise ModelNotFound(f"{wanted.repository} on ModelScope has no file {wanted.file}")
        return folder if wanted.file is None else folder / wanted.file

    def cached(self) -> list[CachedModel]:
        root = (
            Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope" / "hub")
            / "models"
        )
        folders = sorted(folder for folder in root.glob("*/*") if folder.is_dir() and not folder.is_symlink())
        return [
            CachedModel(
                name=f"modelscope:{folder.parent.name}/{folder.name}", path=folder, size_bytes=_size(folder)
            )
            for folder in folders
        ]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
