"""ORG/NAME: models of the Hugging Face hub, kept in that library's own cache."""

from pathlib import Path
from typing import ClassVar

from core.contracts.source import CachedModel, ModelReference, ModelSource, Progress
from core.errors import ModelError, ModelNotFound, UnsafeCheckpoint
from plugins.sources.repository import UNWANTED, WANTED, RepositoryName, parse


class HubSource(ModelSource):
    """The hub that HF_ENDPOINT names, with the user's own token."""

    contract: ClassVar[tuple[int, int]] = (1, 0)
    scheme: ClassVar[str] = ""
    summary: ClassVar[str] = "ORG/NAME or ORG/NAME:FILE.gguf: the Hugging Face hub"

    def fetch(self, reference: ModelReference, progress: Progress) -> Path:
        from httpx import HTTPError

        wanted = parse(reference.name)
        progress(f"fetching {reference.name} from the Hugging Face hub, unless it is cached")
        try:
            return _download(wanted, reference.revision)
        except (HTTPError, OSError, ValueError) as error:
            raise _not_found(reference, error) from error

    def cached(self) -> list[CachedModel]:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            repositories = scan_cache_dir().repos
        except CacheNotFound:
            return []
        models: list[CachedModel] = []
        for repository in repositories:
            snapshots = sorted(repository.revisions, key=lambda revision: revision.last_modified)
            if repository.repo_type == "model" and snapshots:
                path = snapshots[-1].snapshot_path
                models.append(
                    CachedModel(name=repository.repo_id, path=path, size_bytes=repository.size_on_disk)
                )
        return models


def _download(wanted: RepositoryName, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if wanted.file is not None:
        return Path(hf_hub_download(wanted.repository, wanted.file, revision=revision))
    folder = Path(
        snapshot_download(
            wanted.repository, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    )
    if not any(folder.glob("*.safetensors")):
        raise _without_safetensors(wanted.repository, revision)
    return folder


def _without_safetensors(repository: str, revision: str | None) -> ModelError:
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(repository, revision=revision)
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs:
        return ModelNotFound(
            f"{repository} has GGUF files and no safetensors; choose one, as in  {repository}:{ggufs[0]}\n"
            f"It has: {', '.join(ggufs[:20])}"
        )
    pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return UnsafeCheckpoint(
            f"{repository} has only {', '.join(pickles[:5])}: pickle, which can run code when it is read. "
            "Look for a revision or a copy of it in safetensors"
        )
    return ModelNotFound(f"{repository} has neither safetensors nor GGUF files: {', '.join(files[:20])}")


def _not_found(reference: ModelReference, error: Exception) -> ModelNotFound:
    """What the hub library said, as one sentence and what to do."""
    from huggingface_hub import errors

    name, revision = reference.name, reference.revision or "main"
    if isinstance(error, errors.GatedRepoError):
        said = "its owner must grant you access: ask on its page, then log in with  hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        said = f"it has no revision {revision!r}; look at its branches, tags and commits on the hub"
    elif isinstance(error, errors.RepositoryNotFoundError):
        said = "no such repository, or it is private: check the spelling, or log in with  hf auth login"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        said = "the repository has no file of that name; look at its files on the hub"
    elif isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        said = "it is not cached and the hub cannot be reached; check the network and HF_HUB_OFFLINE"
    else:
        said = str(error).strip().split("\n")[0] or type(error).__name__
    local = ", and no file of that name is on this machine" if name.endswith(".gguf") else ""
    return ModelNotFound(f"{name} could not be fetched from the Hugging Face hub: {said}{local}")
