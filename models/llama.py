"""Llama and its nearest kin: Mistral, Qwen 1.5 to 3, Granite, SmolLM 3, Phi 3, InternLM. Yi and SmolLM are Llamas."""

from collections.abc import Callable, Sequence
from functools import partial

from core.contracts.model import ModelDescription
from core.errors import ConfigError
from core.layers.reading import Reading, decoder
from core.layers.settings import FeedForwardSettings, LayerSettings
from models.gguf import Metadata, Values, gguf_mapping


def _llama(read: Reading) -> ModelDescription:
    return read.describe(lambda i: read.layer(f"model.layers.{i}"))


def _mistral(read: Reading) -> ModelDescription:
    """One window for all layers, when the config names one."""

    def layer(i: int) -> LayerSettings:
        attention = read.attention(f"model.layers.{i}.self_attn", qkv_bias=False, output_bias=False)
        return read.layer(f"model.layers.{i}", mixer=attention)

    return read.describe(layer, lambda i: read.shape(sliding_window=read.windows[i]))


def _qwen(read: Reading, *, head_norms: bool) -> ModelDescription:
    """Qwen 2 has biases where Qwen 3 has norms of queries and keys."""
    windows = upper_windows(read)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}.self_attn"
        if head_norms:
            mixer = read.attention(prefix, **read.head_norms(prefix))
        else:
            mixer = read.attention(prefix, qkv_bias=True, output_bias=False)
        return read.layer(f"model.layers.{i}", mixer=mixer)

    return read.describe(layer, lambda i: read.shape(sliding_window=windows[i]))


def upper_windows(read: Reading) -> tuple[int | None, ...]:
    """A window where `layer_types` says so; in older configs, from layer `max_window_layers` on."""
    if not read.flag("use_sliding_window") or read.value("sliding_window") is None:
        return (None,) * read.num_layers
    if read.value("layer_types") is not None:
        return read.layer_windows
    first, window = int(read.value("max_window_layers", read.num_layers)), read.positive("sliding_window")
    return tuple(None if i < first else window for i in range(read.num_layers))


def granite(read: Reading, mlp: Callable[[str], FeedForwardSettings] | None = None) -> ModelDescription:
    """Llama with a multiplier wherever there could be one. mlp  of a layer by its prefix, where it is another"""
    scale = read.number("residual_multiplier", 1.0)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        others = {} if mlp is None else {"mlp": mlp(prefix)}
        return read.layer(prefix, residual_scale=scale, **others)

    return read.describe(
        layer,
        lambda i: read.shape(scale=read.number("attention_multiplier", 1.0)),
        embedding_scale=read.number("embedding_multiplier", 1.0),
        logit_scale=1 / read.number("logits_scaling", 1.0),
    )


def _smollm3(read: Reading) -> ModelDescription:
    """Every fourth layer does not rotate."""
    interval = read.positive("no_rope_layer_interval", 4)
    rotated = read.value("no_rope_layers") or [(i + 1) % interval != 0 for i in range(read.num_layers)]
    if len(rotated) < read.num_layers:
        raise ConfigError(f"no_rope_layers has {len(rotated)} entries for {read.num_layers} layers")
    windows: Sequence[int | None] = (None,) * read.num_layers
    if read.flag("use_sliding_window"):  # without `layer_types`, in the layers that do not rotate
        apart = [None if turned else window for turned, window in zip(rotated, read.windows, strict=False)]
        windows = apart if read.value("layer_types") is None else read.layer_windows

    def layer(i: int) -> LayerSettings:
        rotary = read.rotary() if rotated[i] else None
        return read.layer(
            f"model.layers.{i}", mixer=read.attention(f"model.layers.{i}.self_attn", rotary=rotary)
        )

    return read.describe(layer, lambda i: read.shape(sliding_window=windows[i]))


def _phi3(read: Reading) -> ModelDescription:
    """Queries, keys and values come from one projection, and so do gate and up. What first configs call the scaling of
    the rotation, "su" or "yarn", is longrope.
    """
    given = read.value("rope_scaling") or read.value("rope_parameters") or {}
    old = isinstance(given, dict) and given.get("type") in ("su", "yarn") and "rope_type" not in given
    rotary = read.rotary(block={**given, "rope_type": "longrope"}) if old else read.rotary()

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.self_attn",
                qkv=(f"{prefix}.self_attn.qkv_proj",),
                qkv_bias=False,
                output_bias=False,
                rotary=rotary,
            ),
            mlp=read.mlp(f"{prefix}.mlp", up=(f"{prefix}.mlp.gate_up_proj",), bias=False),
        )

    return read.describe(layer, lambda i: read.shape(sliding_window=read.windows[i]))


def _internlm2(read: Reading) -> ModelDescription:
    """Llama under names of its own; each key and its queries come together out of one projection."""
    bias = read.flag("bias")
    names = ("wqkv",) if read.arranged("fused", usual=True) else ("wq", "wk", "wv")

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                prefix,
                qkv=tuple(f"{prefix}.attention.{name}" for name in names),
                output=f"{prefix}.attention.wo",
                qkv_bias=bias,
                output_bias=bias,
                grouped=True,
            ),
            mlp=read.mlp(
                prefix,
                up=(f"{prefix}.feed_forward.w1", f"{prefix}.feed_forward.w3"),
                down=f"{prefix}.feed_forward.w2",
            ),
            input_norm=read.norm(f"{prefix}.attention_norm"),
            mlp_norm=read.norm(f"{prefix}.ffn_norm"),
        )

    return read.describe(layer, embedding="model.tok_embeddings", head="output")


def _internlm3(read: Reading) -> ModelDescription:
    bias = read.flag("bias")

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        mixer = read.attention(f"{prefix}.self_attn", qkv_bias=read.flag("qkv_bias"), output_bias=bias)
        return read.layer(prefix, mixer=mixer, mlp=read.mlp(f"{prefix}.mlp", bias=bias))

    return read.describe(layer)


def _kin(metadata: Metadata) -> Values:
    """GGUF calls Mixtral a Llama, too, and Mistral."""
    experts, window = metadata.value("expert_count"), metadata.value("attention.sliding_window")
    name = "MixtralForCausalLM" if experts else "MistralForCausalLM" if window else "LlamaForCausalLM"
    return {
        "architectures": [name],
        "num_local_experts": experts,
        "num_experts_per_tok": metadata.value("expert_used_count"),
    }


MIXTRAL_NAMES = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
}
LLAMA_GGUF = gguf_mapping("llama", "LlamaForCausalLM", names=MIXTRAL_NAMES, permuted=True, more=_kin)
LLAMA = decoder("LlamaForCausalLM", "llama", _llama, gguf=LLAMA_GGUF)
MISTRAL = decoder(
    "MistralForCausalLM",
    "llama",
    _mistral,
    defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    gguf=LLAMA_GGUF,
)
QWEN = {"sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
QWEN2 = decoder(
    "Qwen2ForCausalLM",
    "llama",
    partial(_qwen, head_norms=False),
    defaults=QWEN,
    gguf=gguf_mapping("qwen2", "Qwen2ForCausalLM"),
)
QWEN3 = decoder(
    "Qwen3ForCausalLM",
    "llama",
    partial(_qwen, head_norms=True),
    defaults={**QWEN, "head_dim": 128},
    gguf=gguf_mapping("qwen3", "Qwen3ForCausalLM"),
)
GRANITE_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
GRANITE = decoder(
    "GraniteForCausalLM",
    "llama",
    granite,
    gguf=gguf_mapping("granite", "GraniteForCausalLM", permuted=True, also=GRANITE_SCALES),
)
SMOLLM3 = decoder(
    "SmolLM3ForCausalLM",
    "llama",
    _smollm3,
    defaults={
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "max_position_embeddings": 32768,
    },
    gguf=gguf_mapping("smollm3", "SmolLM3ForCausalLM", permuted=True),
)
PHI3 = decoder(
    "Phi3ForCausalLM",
    "llama",
    _phi3,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    gguf=gguf_mapping(
        "phi3",
        "Phi3ForCausalLM",
        names={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
)
INTERNLM2 = decoder(
    "InternLM2ForCausalLM",
    "llama",
    _internlm2,
    gguf=gguf_mapping(
        "internlm2",
        "InternLM2ForCausalLM",
        names={
            "token_embd": "model.tok_embeddings",
            "output": "output",
            "attn_norm": "attention_norm",
            "attn_q": "attention.wq",
            "attn_k": "attention.wk",
            "attn_v": "attention.wv",
            "attn_output": "attention.wo",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
        },
        permuted=True,
        arrangement={"fused": False, "grouped": False},
    ),
)
INTERNLM3 = decoder("InternLM3ForCausalLM", "llama", _internlm3)

ALL = [LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3, PHI3, INTERNLM2, INTERNLM3]
