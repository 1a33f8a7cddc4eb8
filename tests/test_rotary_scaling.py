"""Every `rope_type` that we know, against transformers, for sequences within the original context and beyond it."""

from typing import Any

import pytest
import torch

from core.errors import ConfigError
from core.layers.rotary import SCALINGS, RotaryTable, frequencies
from core.layers.settings import RotarySettings

CONTEXT, ORIGINAL, DIM = 512, 128, 16
BLOCKS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 16},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(DIM // 2)],
        "long_factor": [2.0 + 0.5 * i for i in range(DIM // 2)],
        "original_max_position_embeddings": ORIGINAL,
    },
}
YARNS = [
    {"attention_factor": 1.5},
    {"mscale": 1.0, "mscale_all_dim": 0.707},
    {"mscale": 0.707},
    {"truncate": False},
    {"factor": None},
]


def settings(block: dict[str, Any]) -> RotarySettings:
    return RotarySettings(rotary_dim=DIM, theta=10000.0, scaling=block, context=CONTEXT)


def expected(block: dict[str, Any], longest: int) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10000.0, **block},
    )
    if block["rope_type"] == "default":
        return 1.0 / 10000.0 ** (torch.arange(0, DIM, 2).float() / DIM), 1.0
    return ROPE_INIT_FUNCTIONS[block["rope_type"]](config, torch.device("cpu"), seq_len=longest)


@pytest.mark.parametrize("longest", [100, CONTEXT, 700])
@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_are_those_of_transformers(kind: str, longest: int) -> None:
    block = {"rope_type": kind, **BLOCKS[kind]}
    wanted, scale = expected(block, longest)

    found, factor = frequencies(settings(block), longest)

    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert factor == pytest.approx(scale)


@pytest.mark.parametrize("change", YARNS, ids=str)
def test_yarn_is_sharpened_as_its_config_says(change: dict[str, Any]) -> None:
    block = {"rope_type": "yarn", **BLOCKS["yarn"], **change}
    wanted, scale = expected(block, CONTEXT)

    found, factor = frequencies(settings(block), CONTEXT)

    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert factor == pytest.approx(scale)


def test_a_table_multiplies_what_it_looks_up() -> None:
    inverse, _ = frequencies(settings({}), CONTEXT)
    cos, sin = RotaryTable(inverse, 8, torch.float32, "cpu", 2.0)(torch.tensor([3, 0]))

    torch.testing.assert_close(cos[0], 2 * (3 * inverse).cos())
    torch.testing.assert_close(sin[1], torch.zeros(DIM // 2))


def test_a_scaling_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"rope_type is 'spiral'.*yarn"):
        frequencies(settings({"rope_type": "spiral"}), CONTEXT)
