"""What a model is asked for: to go on with a text, or to make a vector or numbers for labels of it.

The architecture says what it is. Files beside the checkpoint may say more, and the user may ask a model that generates
for embeddings.
"""

from dataclasses import replace
from typing import Any, cast

from core.contracts.attention import AttentionShape
from core.contracts.model import LayerShape, ModelDescription, Pooling
from core.errors import BadCheckpoint, ConfigError
from core.weights.checkpoint import Checkpoint
from core.weights.sentence import SentenceFiles, sentence_files

_POOLED = {"first": "the first token", "last": "the last token", "mean": "the mean of all tokens"}


def with_purpose(description: ModelDescription, checkpoint: Checkpoint, task: str) -> ModelDescription:
    """The description with its `pooling` as it will be done; task  as `EngineConfig` has it.

    Raises ConfigError when the model cannot do what was asked for, ModelError for files that cannot be followed.
    """
    if description.embedder is not None and task in ("auto", "embed"):
        return description.embedder if task == "embed" else description
    pooling = description.pooling
    if pooling is not None and task not in ("auto", pooling.task):
        raise _wrong_task(description, pooling.task, task)
    if pooling is None and task == "classify":
        raise _wrong_task(description, "generate", task)
    if task == "generate":
        return description
    if pooling is not None and pooling.labels is not None:
        return replace(description, layers=_layers(description, checkpoint))
    hidden = description.hidden_size
    files = sentence_files(checkpoint.path, hidden) if checkpoint.path.is_dir() else None
    if pooling is None and files is None and task == "auto":
        return description
    pooling = pooling or Pooling(tokens="last", size=hidden, normalize=True)
    if files is not None:
        description, pooling = _following(description, pooling, files)
    pooling = replace(pooling, shorter=_trained_lengths(checkpoint, pooling.size))
    return replace(description, pooling=pooling, layers=_layers(description, checkpoint))


def summary(pooling: Pooling) -> str:
    """What becomes of a text, in a line."""
    made = f"{pooling.size} numbers" if pooling.labels is None else f"labels {', '.join(pooling.labels[:5])}"
    steps = [_POOLED[pooling.tokens], *pooling.dense, made]
    if pooling.labels is None:
        steps += ["scaled to length 1"] if pooling.normalize else []
    elif pooling.activation != "none":
        steps.append(pooling.activation)
    return ", ".join(steps)


def _layers(description: ModelDescription, checkpoint: Checkpoint) -> tuple[LayerShape, ...]:
    """Those of the description; of a decoder that was trained to see both ways, as config.json then says, so."""
    config = checkpoint.config
    if config.get("is_causal") is not False and config.get("use_bidirectional_attention") is not True:
        return description.layers
    return tuple(
        replace(shape, causal=False) if isinstance(shape, AttentionShape) else shape
        for shape in description.layers
    )


def _following(
    description: ModelDescription, pooling: Pooling, files: SentenceFiles
) -> tuple[ModelDescription, Pooling]:
    longest = description.context if files.longest is None else min(files.longest, description.context)
    followed = replace(
        pooling,
        tokens=files.tokens,
        normalize=files.normalize,
        dense=files.dense,
        size=files.size,
    )
    return replace(description, context=longest), followed


def _trained_lengths(checkpoint: Checkpoint, size: int) -> tuple[int, ...] | None:
    """config.json's `matryoshka_dimensions`, or that it `is_matryoshka`; size  of the whole embedding."""
    listed: Any = checkpoint.config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        for length in cast("list[Any]", listed):
            if not isinstance(length, int) or not 1 <= length <= size:
                raise BadCheckpoint(
                    f"{checkpoint.path}/config.json: matryoshka_dimensions has {length!r:.80}; "
                    f"the embedding has {size} numbers, and leading ones of it can be kept"
                )
        return tuple(cast("list[int]", listed))
    return () if checkpoint.config.get("is_matryoshka") is True else None


def _wrong_task(description: ModelDescription, able: str, task: str) -> ConfigError:
    does = {"generate": "generates text", "embed": "makes embeddings", "classify": "gives numbers for labels"}
    return ConfigError(
        f"task is {task} and the model, a {description.architecture}, {does[able]}; choose auto or {able}",
        setting="task",
    )
