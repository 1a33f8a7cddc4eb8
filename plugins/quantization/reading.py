"""What a quantization_config says, and what a checkpoint's header must say to fit it. No torch."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from core.contracts.packing import TensorHeader
from core.errors import BadCheckpoint, ConfigError

_Value = TypeVar("_Value", bool, int, str)

FLOATS = ("float16", "bfloat16", "float32")
_WORD = 32  # bits of the int32 that numbers are packed into


def one_of(
    config: Mapping[str, Any], key: str, accepted: tuple[_Value, ...], default: _Value | None = None
) -> _Value:
    """The value of a key, or the default where there is none. Raises ConfigError for one that is not accepted."""
    value = default if config.get(key) is None else config[key]
    for each in accepted:
        if type(value) is type(each) and value == each:
            return each
    listed = ", ".join(map(repr, accepted))
    raise ConfigError(f"{key} is {value!r:.80}; accepted: {listed}")


def group_size(config: Mapping[str, Any]) -> int | None:
    """Consecutive inputs that share a scale; None, written -1, where all of a row do."""
    value = config.get("group_size")
    if type(value) is not int or (value < 1 and value != -1):
        raise ConfigError(f"group_size is {value!r:.80}; a whole number above 0, or -1, is expected")
    return None if value == -1 else value


def layers(stored: Mapping[str, TensorHeader]) -> Iterator[str]:
    """Names of the layers whose weights are packed."""
    return (name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))


def packed_along(stored: Mapping[str, TensorHeader], name: str, bits: int, dim: int) -> tuple[int, int]:
    """The shape of a matrix whose numbers are packed along a dimension. Raises BadCheckpoint when it is none."""
    header = stored[name]
    if header.dtype != "int32" or len(header.shape) != 2:
        raise BadCheckpoint(f"{name} is {header.dtype} {list(header.shape)}; a matrix in int32 is expected")
    rows, columns = header.shape
    count = _WORD // bits
    return (rows * count, columns) if dim == 0 else (rows, columns * count)


def expect(
    stored: Mapping[str, TensorHeader], name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> str:
    """The name of a tensor that is there as it should be. Raises BadCheckpoint otherwise."""
    wanted = f"{list(shape)} in {' or '.join(dtypes)} is expected"
    if name not in stored:
        raise BadCheckpoint(f"{name} is missing; {wanted}")
    header = stored[name]
    if header.dtype not in dtypes or header.shape != shape:
        raise BadCheckpoint(f"{name} is {list(header.shape)} in {header.dtype}; {wanted}")
    return name


def biases(stored: Mapping[str, TensorHeader]) -> frozenset[str]:
    """Those of layers whose weights are packed: some programs write one for every layer, of zeros."""
    return frozenset(f"{layer}.bias" for layer in layers(stored)) & stored.keys()
