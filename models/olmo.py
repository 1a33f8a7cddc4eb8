"""OLMo: norms without weights; from 2 on none before each half, one behind it, and one of all queries or keys."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings, RotarySettings
from models.gguf import Metadata, Values, gguf_mapping


def _plain_norm(read: Reading) -> NormSettings:
    return NormSettings(name="", size=read.hidden, eps=1e-5, kind="layer", weight=False)


def _olmo(read: Reading) -> ModelDescription:
    clip = read.optional("clip_qkv")

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(f"{prefix}.self_attn", clip=clip),
            input_norm=_plain_norm(read),
            mlp_norm=_plain_norm(read),
        )

    return read.describe(layer, norm=_plain_norm(read))


def _olmo2(read: Reading) -> ModelDescription:
    return _described(read, (None,) * read.num_layers, read.rotary(), None)


def _olmo3(read: Reading) -> ModelDescription:
    """Layers with a window rotate as the model was trained; only the others were stretched to a longer context."""
    given = read.value("rope_parameters") or {}
    whole = read.rotary(block=given["full_attention"]) if "full_attention" in given else read.rotary()
    local = read.rotary(block=given.get("sliding_attention") or {"rope_theta": whole.theta})
    return _described(read, read.windows_but_every(4), whole, local)


def _described(
    read: Reading, windows: tuple[int | None, ...], whole: RotarySettings, local: RotarySettings | None
) -> ModelDescription:
    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        mixer = read.attention(
            f"{prefix}.self_attn",
            rotary=whole if windows[i] is None else local,
            query_norm=read.norm(f"{prefix}.self_attn.q_norm", size=read.heads * read.head_dim),
            key_norm=read.norm(f"{prefix}.self_attn.k_norm", size=read.kv_heads * read.head_dim),
        )
        return read.layer(
            prefix,
            mixer=mixer,
            input_norm=None,
            mlp_norm=None,
            mixer_output_norm=read.norm(f"{prefix}.post_attention_layernorm"),
            mlp_output_norm=read.norm(f"{prefix}.post_feedforward_layernorm"),
        )

    return read.describe(layer, lambda i: read.shape(sliding_window=windows[i]))


def _with_a_window(metadata: Metadata) -> Values:
    """GGUF calls OLMo 3 an OLMo 2."""
    return {"architectures": ["Olmo3ForCausalLM"]} if metadata.value("attention.sliding_window") else {}


OLMO = decoder(
    "OlmoForCausalLM",
    "olmo",
    _olmo,
    gguf=gguf_mapping(
        "olmo", "OlmoForCausalLM", permuted=True, layer_norms=True, also={"clip_qkv": "attention.clamp_kqv"}
    ),
)
_OLMO2_GGUF = gguf_mapping(
    "olmo2",
    "Olmo2ForCausalLM",
    names={"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    more=_with_a_window,
)
OLMO2 = decoder("Olmo2ForCausalLM", "olmo", _olmo2, defaults={"rms_norm_eps": 1e-5}, gguf=_OLMO2_GGUF)
OLMO3 = decoder(
    "Olmo3ForCausalLM",
    "olmo",
    _olmo3,
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 500000.0},
    gguf=_OLMO2_GGUF,
)

ALL = [OLMO, OLMO2, OLMO3]
