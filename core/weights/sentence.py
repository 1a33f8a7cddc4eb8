"""What sentence-transformers' files beside a checkpoint say of pooling.

modules.json lists the steps from a text to its vector, each with a folder: the model itself, how it is pooled, linear
layers, a scaling to length 1. A list that cannot be followed to the letter is refused, by the step's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from core.errors import BadCheckpoint, ModelError
from core.weights.checkpoint import read_json, read_json_list

_TOKENS = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh"}
_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_PACKAGE = "sentence_transformers."


@dataclass(frozen=True, kw_only=True)
class SentenceFiles:
    """How a text becomes a vector.

    tokens     whose hidden states are pooled, as `Pooling` spells it
    normalize  whether the vector is scaled to length 1 at the end
    dense      folders with a linear layer each, in order
    size       numbers in the vector
    longest    tokens that a text may have; None: as many as the model takes
    """

    tokens: str
    normalize: bool
    dense: tuple[str, ...]
    size: int
    longest: int | None


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """A linear layer of its own folder: [outputs, inputs], a bias if there is one, then tanh or nothing."""

    inputs: int
    outputs: int
    bias: bool
    activation: str | None


def sentence_files(folder: Path, hidden_size: int) -> SentenceFiles | None:
    """What modules.json of this folder asks for, of a model with hidden states of this size; None without one.

    Raises ModelError for a step that cannot be followed, BadCheckpoint for files that make no sense.
    """
    if not (folder / "modules.json").is_file():
        return None
    steps = [_step(folder, entry) for entry in read_json_list(folder / "modules.json")]
    kinds = [kind for kind, _ in steps]
    dense = tuple(path for kind, path in steps if kind == "Dense")
    if kinds != [
        "Transformer",
        "Pooling",
        *["Dense"] * len(dense),
        *["Normalize"] * kinds.count("Normalize"),
    ]:
        raise ModelError(
            f"{folder}/modules.json lists {', '.join(kinds)}; what can be followed is Transformer, Pooling, any number "
            "of Dense, and Normalize, in this order"
        )
    found = [name for name in _SETTINGS if (folder / name).is_file()]
    settings = read_json(folder / found[0]) if found else dict[str, Any]()
    if settings.get("do_lower_case"):
        raise ModelError(
            f"{folder}: do_lower_case, which would change texts before they are tokenized, is not supported"
        )
    longest: Any = settings.get("max_seq_length")
    return SentenceFiles(
        tokens=_tokens(folder / steps[1][1] / "config.json"),
        normalize="Normalize" in kinds,
        dense=dense,
        size=_size(folder, dense, hidden_size),
        longest=longest if isinstance(longest, int) and longest > 0 else None,
    )


def dense_settings(folder: Path) -> DenseSettings:
    """What config.json of a linear layer's folder says. Raises ModelError for another activation."""
    config = _named(folder / "config.json")
    activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ModelError(f"{folder}/config.json: activation_function is {activation}; {known} are known")
    try:
        inputs, outputs = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError):
        raise BadCheckpoint(f"{folder}/config.json lacks in_features or out_features") from None
    if outputs < 1:
        raise BadCheckpoint(f"{folder}/config.json: out_features is {outputs}; 1 or more is expected")
    bias = bool(config.get("bias", True))
    return DenseSettings(inputs=inputs, outputs=outputs, bias=bias, activation=_ACTIVATIONS[activation])


def _step(folder: Path, entry: Any) -> tuple[str, str]:
    """A step's kind and the name of its folder, which lies in this one; of code from elsewhere, its whole type."""
    if not isinstance(entry, dict):
        raise BadCheckpoint(f"{folder}/modules.json holds {entry!r:.80}; objects are expected")
    step = cast("Mapping[str, Any]", entry)
    path = str(step.get("path", ""))
    if Path(path).name != path or path == "..":
        raise BadCheckpoint(f"{folder}/modules.json names the folder {path!r:.80}; one beside it is expected")
    kind = str(step.get("type", ""))
    return kind.rpartition(".")[2] if kind.startswith(_PACKAGE) else kind, path


def _size(folder: Path, dense: Sequence[str], size: int) -> int:
    """Of what the linear layers make of a vector of this size. Raises BadCheckpoint when one takes another."""
    for name in dense:
        layer = dense_settings(folder / name)
        if layer.inputs != size:
            raise BadCheckpoint(
                f"{folder / name}/config.json: in_features is {layer.inputs}, and "
                f"what comes before makes {size} numbers"
            )
        size = layer.outputs
    return size


def _tokens(file: Path) -> str:
    config = _named(file)
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{file}: include_prompt is false; that a prompt is not pooled with its text is not supported"
        )
    prefix = "pooling_mode_"
    asked = [
        key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True
    ]
    named: Any = config.get("pooling_mode")
    asked = [mode.removesuffix("_tokens").removesuffix("_token") for mode in asked] or [str(named)]
    if len(asked) != 1 or asked[0] not in _TOKENS:
        raise ModelError(f"{file} pools {' and '.join(asked)}; {', '.join(_TOKENS)} are known")
    return _TOKENS[asked[0]]


def _named(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BadCheckpoint(f"{file} is missing; modules.json names its folder")
    return read_json(file)
