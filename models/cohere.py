"""Command-R and Command-A: both halves of a layer read one layer norm, and neighbours are rotated together."""

from collections.abc import Callable

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import AttentionSettings, LayerSettings, NormSettings
from models.gguf import gguf_mapping


def _norm(read: Reading, name: str) -> NormSettings:
    return read.norm(name, eps="layer_norm_eps", kind="layer")


def _described(
    read: Reading, attention: Callable[[int], AttentionSettings], windows: tuple[int | None, ...]
) -> ModelDescription:
    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=attention(i),
            mlp=read.mlp(f"{prefix}.mlp", bias=False),
            input_norm=_norm(read, f"{prefix}.input_layernorm"),
            mlp_norm=None,
            parallel=True,
        )

    return read.describe(
        layer,
        lambda i: read.shape(sliding_window=windows[i]),
        norm=_norm(read, "model.norm"),
        logit_scale=read.number("logit_scale", 0.0625),
    )


def _cohere(read: Reading) -> ModelDescription:
    def head_norm(name: str, heads: int) -> NormSettings | None:
        if not read.flag("use_qk_norm"):
            return None
        return read.norm(
            name, eps="layer_norm_eps", kind="layer", size=read.head_dim, heads=heads, over_a_head=True
        )

    def attention(i: int) -> AttentionSettings:
        prefix = f"model.layers.{i}.self_attn"
        return read.attention(
            prefix,
            rotary=read.rotary(interleaved=True),
            query_norm=head_norm(f"{prefix}.q_norm", read.heads),
            key_norm=head_norm(f"{prefix}.k_norm", read.kv_heads),
        )

    return _described(read, attention, (None,) * read.num_layers)


def _cohere2(read: Reading) -> ModelDescription:
    """Layers with a window rotate; those without see everything and know no positions."""
    windows = read.windows_but_every(read.positive("sliding_window_pattern", 4))

    def attention(i: int) -> AttentionSettings:
        rotary = None if windows[i] is None else read.rotary(interleaved=True)
        return read.attention(f"model.layers.{i}.self_attn", rotary=rotary)

    return _described(read, attention, windows)


_COHERE = {"layer_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 8192}
COHERE = decoder(
    "CohereForCausalLM",
    "cohere",
    _cohere,
    defaults={**_COHERE, "rope_theta": 500000.0},
    gguf=gguf_mapping(
        "command-r",
        "CohereForCausalLM",
        layer_norms=True,
        also={"logit_scale": "logit_scale"},
        told={"use_qk_norm": ("attn_q_norm.weight",)},
    ),
)
COHERE2 = decoder(
    "Cohere2ForCausalLM",
    "cohere",
    _cohere2,
    defaults={**_COHERE, "sliding_window": 4096},
    gguf=gguf_mapping("cohere2", "Cohere2ForCausalLM", layer_norms=True, also={"logit_scale": "logit_scale"}),
)

ALL = [COHERE, COHERE2]
