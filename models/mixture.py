"""Reading a mixture of experts: its settings, under the names that most families give its weights."""

from typing import Any

from core.contracts.kernels import Routing
from core.errors import ConfigError
from core.layers.moe import MoeSettings
from core.layers.reading import Reading


def mixture(
    read: Reading, prefix: str, routing: Routing, *, experts: str = "num_experts", **others: Any
) -> MoeSettings:
    """Experts under `prefix`. experts  the key that has their number; `others` are fields of MoeSettings."""
    if read.activation() != "silu":
        raise ConfigError(
            f"hidden_act is {read.value('hidden_act')!r}; {read.architecture} here computes silu"
        )
    read.expect("mlp_bias", expected=False, why="has no biases in its experts")
    count = read.positive(experts)
    each = count // routing.groups  # experts of a group
    short = routing.top_k > each * min(routing.top_groups, routing.groups)
    if count % routing.groups or short or (routing.groups > 1 and each < routing.group_best):
        chosen = f"{routing.top_k} of {count} experts, in {routing.top_groups} of {routing.groups} groups"
        raise ConfigError(f"config.json asks for {chosen}, which cannot be chosen")
    usual: dict[str, Any] = {
        "router": f"{prefix}.gate",
        "num_experts": count,
        "routing": routing,
        "up": (f"{prefix}.experts.{{e}}.gate_proj.weight", f"{prefix}.experts.{{e}}.up_proj.weight"),
        "down": f"{prefix}.experts.{{e}}.down_proj.weight",
    }
    if "intermediate_size" not in others:
        usual["intermediate_size"] = read.positive("moe_intermediate_size")
    return MoeSettings(**{**usual, **others})


def softmax_routing(read: Reading, **others: Any) -> Routing:
    """Experts by the softmax of all logits; `others` are fields of Routing."""
    return Routing(**{"top_k": read.positive("num_experts_per_tok"), **others})
