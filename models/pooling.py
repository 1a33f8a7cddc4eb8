"""What a decoder becomes when it is asked for embeddings or labels, and what such checkpoints call things.

Every model in this package may be asked for embeddings of the checkpoint that it generates from. Declared here are the
names under which checkpoints are saved that were trained for nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from core.contracts.model import Architecture, ModelDescription, Pooling
from core.errors import ConfigError
from core.layers.reading import Reading
from core.layers.settings import ClassifierSettings, DecoderSettings

_PROBLEMS = {
    "regression": "none",
    "single_label_classification": None,
    "multi_label_classification": "sigmoid",
}
_FUNCTIONS = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_CAUSAL = {"use_bidirectional_attention": False}
"""What families are asked to describe; whoever pools them then looks at what the config says of it."""


def embeds(size: int, tokens: str) -> Pooling:
    """An embedding of the hidden states as they are, scaled to length 1."""
    return Pooling(tokens=tokens, size=size, normalize=True)


def classifies(read: Reading, tokens: str) -> Pooling:
    """A number for each label, under the activation that the config asks for.

    A single label gets a probability of its own, as cross-encoders are trained to give; several share one.
    """
    labels = _labels(read)
    usual = "sigmoid" if len(labels) == 1 else "softmax"
    return Pooling(tokens=tokens, size=len(labels), labels=labels, activation=_activation(read) or usual)


def _labels(read: Reading) -> tuple[str, ...]:
    named: Any = read.value("id2label")
    if isinstance(named, dict) and named:
        try:
            ordered = sorted(
                (int(number), str(label)) for number, label in cast("dict[Any, Any]", named).items()
            )
        except ValueError:
            raise ConfigError(
                f"config.json: id2label is {named!r:.80}; numbers are expected as its keys"
            ) from None
        return tuple(label for _, label in ordered)
    # Two are transformers' own default, which it leaves out of config.json.
    return tuple(f"LABEL_{i}" for i in range(read.positive("num_labels", 2)))


def _activation(read: Reading) -> str | None:
    """What sentence-transformers wrote down, else what kind of problem the labels are; None: the usual."""
    block: Any = read.value("sentence_transformers")
    written = cast("dict[str, Any]", block).get("activation_fn") if isinstance(block, dict) else None
    written = written or read.value("sbert_ce_default_activation_function")
    if written is not None:
        name = str(written).rpartition(".")[2]
        if name not in _FUNCTIONS:
            raise ConfigError(
                f"config.json: the activation of its labels is {written!r:.80}; known: {', '.join(_FUNCTIONS)}"
            )
        return _FUNCTIONS[name]
    problem = read.value("problem_type")
    if problem is not None and problem not in _PROBLEMS:
        raise ConfigError(f"config.json: problem_type is {problem!r:.80}; known: {', '.join(_PROBLEMS)}")
    return None if problem is None else _PROBLEMS[problem]


def pooled(architecture: Architecture, stem: str) -> list[Architecture]:
    """STEMModel and STEMForSequenceClassification of a decoder family: both look at the last token."""

    def embedder(config: Mapping[str, Any]) -> ModelDescription:
        described = architecture.describe({**config, **_CAUSAL})
        return replace(described, architecture=f"{stem}Model", pooling=embeds(described.hidden_size, "last"))

    def classifier(config: Mapping[str, Any]) -> ModelDescription:
        described = architecture.describe({**config, **_CAUSAL})
        settings: DecoderSettings = described.settings
        return replace(
            described,
            architecture=f"{stem}ForSequenceClassification",
            pooling=classifies(Reading(architecture.name, config), "last"),
            settings=replace(
                settings,
                logit_scale=1.0,
                logit_cap=None,
                classifier=ClassifierSettings(output="score", output_bias=False),
                unused=("lm_head.",),
            ),
        )

    return [
        replace(architecture, name=f"{stem}Model", describe=embedder, gguf=None),
        replace(architecture, name=f"{stem}ForSequenceClassification", describe=classifier, gguf=None),
    ]
