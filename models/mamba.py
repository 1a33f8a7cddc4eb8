"""Mamba, and Jamba, which has attention in one layer of several: a recurrent state for each sequence."""

import math

from core.contracts.kernels import Routing
from core.contracts.model import LayerShape, ModelDescription
from core.errors import BadCheckpoint
from core.layers.mamba import MambaSettings
from core.layers.moe import MoeSettings
from core.layers.reading import Reading, decoder
from core.layers.settings import FeedForwardSettings, LayerSettings, MlpSettings, NormSettings
from models.gguf import Metadata, Values, gguf_mapping
from models.mixture import mixture


def _rank(read: Reading, key: str) -> int:
    """Of what time steps are made of; "auto" is a sixteenth of the stream."""
    return math.ceil(read.hidden / 16) if read.value(key, "auto") == "auto" else read.positive(key)


def _mamba(read: Reading) -> ModelDescription:
    read.expect("hidden_act", "silu", "computes silu")
    wide = read.flag("residual_in_fp32", True)

    def norm(name: str) -> NormSettings:
        return read.norm(name, eps="layer_norm_epsilon", wide=wide)

    def mixer(i: int) -> MambaSettings:
        return MambaSettings(
            name=f"backbone.layers.{i}.mixer",
            channels=read.positive("intermediate_size", int(read.number("expand", 2) * read.hidden)),
            state_size=read.positive("state_size", 16),
            width=read.positive("conv_kernel", 4),
            rank=_rank(read, "time_step_rank"),
            conv_bias=read.flag("use_conv_bias", True),
            bias=read.flag("use_bias"),
            log_decay=read.arranged("log_decay", usual=True),
        )

    def layer(i: int) -> LayerSettings:
        return LayerSettings(
            hidden_size=read.hidden,
            mixer=mixer(i),
            mlp=None,
            input_norm=norm(f"backbone.layers.{i}.norm"),
            mlp_norm=None,
        )

    return read.describe(
        layer,
        lambda i: mixer(i).shape,
        tied=True,
        embedding="backbone.embeddings",
        norm=norm("backbone.norm_f"),
    )


def _jamba(read: Reading) -> ModelDescription:
    """Attention knows no positions but by the layers around it."""

    def mixer(i: int) -> MambaSettings:
        name = f"model.layers.{i}.mamba"
        rank, size = _rank(read, "mamba_dt_rank"), read.positive("mamba_d_state", 16)
        return MambaSettings(
            name=name,
            channels=read.positive("mamba_expand", 2) * read.hidden,
            state_size=size,
            width=read.positive("mamba_d_conv", 4),
            rank=rank,
            conv_bias=read.flag("mamba_conv_bias", True),
            bias=read.flag("mamba_proj_bias"),
            log_decay=read.arranged("log_decay", usual=True),
            step_norm=read.norm(f"{name}.dt_layernorm", size=rank),
            input_norm=read.norm(f"{name}.b_layernorm", size=size),
            output_norm=read.norm(f"{name}.c_layernorm", size=size),
        )

    def feed_forward(i: int) -> MlpSettings | FeedForwardSettings:
        name = f"model.layers.{i}.feed_forward"
        many = read.positive("num_experts", 16) > 1 and _is_one(read, i, "expert", 2, 1)
        return _jamba_experts(read, name) if many else read.mlp(name)

    def attends(i: int) -> bool:
        return _is_one(read, i, "attn", 8, 4)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(f"{prefix}.self_attn", rotary=None) if attends(i) else mixer(i),
            mlp=feed_forward(i),
            mlp_norm=read.norm(f"{prefix}.pre_ff_layernorm"),
        )

    def shape(i: int) -> LayerShape:
        return read.shape() if attends(i) else mixer(i).shape

    return read.describe(layer, shape, norm=read.norm("model.final_layernorm"))


def _is_one(read: Reading, i: int, kind: str, period: int, offset: int) -> bool:
    """Whether layer i is one of those of which every so many-th is."""
    return i % read.positive(f"{kind}_layer_period", period) == read.value(f"{kind}_layer_offset", offset)


def _jamba_experts(read: Reading, name: str) -> MoeSettings:
    routing = Routing(top_k=read.positive("num_experts_per_tok", 2))
    return mixture(read, name, routing, router=f"{name}.router", intermediate_size=read.intermediate)


def _mamba_told(metadata: Metadata) -> Values:
    metadata.expect("ssm.dt_b_c_rms", expected=False, why="as of Mamba")
    return {"intermediate_size": metadata.whole("ssm.inner_size")}


def _jamba_told(metadata: Metadata) -> Values:
    """Which layers attend, their number of key heads tells; which have experts, their tensors do."""
    count = metadata.whole("block_count")
    key_heads, experts = metadata.value("attention.head_count_kv"), metadata.value("expert_count") or 1
    attending = [i for i in range(count) if not isinstance(key_heads, list) or key_heads[i]]
    sparse = [i for i in range(count) if f"blk.{i}.ffn_gate_exps.weight" in metadata.tensors]
    return {
        "mamba_expand": metadata.whole("ssm.inner_size") // metadata.whole("embedding_length"),
        "num_experts": experts,
        **_period("attn", attending, count),
        **_period("expert", sparse, count),
    }


def _period(kind: str, layers: list[int], count: int) -> dict[str, int]:
    """Every so many layers, from one on. Raises BadCheckpoint when they come otherwise."""
    first = layers[0] if layers else count
    period = layers[1] - first if len(layers) > 1 else count + 1
    if layers != list(range(first, count, period)) or first >= period:
        raise BadCheckpoint(f"the layers {layers} of {count} do not follow one another at equal distances")
    return {f"{kind}_layer_offset": first, f"{kind}_layer_period": period}


def _names(prefix: str) -> dict[str, str]:
    """What GGUF calls a mixer's weights."""
    return {
        "ssm_in": f"{prefix}.in_proj",
        "ssm_conv1d": f"{prefix}.conv1d",
        "ssm_x": f"{prefix}.x_proj",
        "ssm_dt": f"{prefix}.dt_proj",
        "ssm_a": f"{prefix}.A_log",
        "ssm_d": f"{prefix}.D",
        "ssm_out": f"{prefix}.out_proj",
    }


MAMBA = decoder(
    "MambaForCausalLM",
    "mamba",
    _mamba,
    defaults={"layer_norm_epsilon": 1e-5},
    gguf=gguf_mapping(
        "mamba",
        "MambaForCausalLM",
        names={
            "token_embd": "backbone.embeddings",
            "output_norm": "backbone.norm_f",
            "attn_norm": "norm",
            **_names("mixer"),
        },
        layer="backbone.layers.{i}",
        attends=False,
        keys={"rms_norm_eps": "layer_norm_epsilon"},
        also={key: f"ssm.{key}" for key in ("conv_kernel", "state_size", "time_step_rank")},
        told={"use_conv_bias": ("ssm_conv1d.bias",), "use_bias": ("ssm_in.bias",)},
        arrangement={"log_decay": False},
        more=_mamba_told,
    ),
)
JAMBA = decoder(
    "JambaForCausalLM",
    "jamba",
    _jamba,
    defaults={"num_experts": 16, "num_key_value_heads": 8, "max_position_embeddings": 262144},
    gguf=gguf_mapping(
        "jamba",
        "JambaForCausalLM",
        names={
            "output_norm": "model.final_layernorm",
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_exps": "feed_forward.experts.{e}.gate_proj",
            "ffn_up_exps": "feed_forward.experts.{e}.up_proj",
            "ffn_down_exps": "feed_forward.experts.{e}.down_proj",
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            **_names("mamba"),
        },
        also={
            "mamba_d_conv": "ssm.conv_kernel",
            "mamba_d_state": "ssm.state_size",
            "mamba_dt_rank": "ssm.time_step_rank",
            "num_experts_per_tok": "expert_used_count",
        },
        told={"mamba_conv_bias": ("ssm_conv1d.bias",), "mamba_proj_bias": ("ssm_in.bias",)},
        arrangement={"log_decay": False},
        more=_jamba_told,
    ),
)

ALL = [MAMBA, JAMBA]
