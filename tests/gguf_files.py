"""GGUF files that tests write: a file per test, of the tensors and metadata that it is about."""

from typing import Any

import numpy as np
from gguf import GGUFWriter


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_to_disk(writer: GGUFWriter) -> None:
    """Everything that was added, in the order of the format."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def never(*_: Any) -> Any:
    """For an architecture whose checkpoints are read but whose model is never made."""
    raise RuntimeError("no test here describes or builds a model")
