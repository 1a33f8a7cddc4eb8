"""Self-attention: projections, rotary positions, and the platform's paged attention."""

from dataclasses import dataclass

from torch import Tensor

from core.contracts.attention import AttentionShape
from core.contracts.model import Parts, StepInputs, Weights
from core.layers.linear import Linear
from core.layers.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """Declared differences between families: biases, and the norms on queries and keys (None: no norm)."""

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm_eps: float | None = None


class SelfAttention:
    """One layer's attention, [N, H] -> [N, H]."""

    def __init__(
        self,
        weights: Weights,
        parts: Parts,
        prefix: str,
        index: int,
        hidden: int,
        shape: AttentionShape,
        settings: ProjectionSettings,
    ) -> None:
        self._index = index
        self._shape = shape
        self._attention = parts.attention[index]
        self._kernels = parts.kernels
        query_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self._sizes = (query_size, kv_size, kv_size)
        names = [f"{prefix}.{name}_proj" for name in "qkv"]
        self._qkv = Linear(weights, parts, names, self._sizes, hidden, bias=settings.qkv_bias)
        self._output = Linear(
            weights, parts, [f"{prefix}.o_proj"], [hidden], query_size, bias=settings.output_bias
        )
        self._norms: tuple[RMSNorm, RMSNorm] | None = None
        if settings.qk_norm_eps is not None:
            self._norms = (
                RMSNorm(weights, parts, f"{prefix}.q_norm", shape.head_dim, settings.qk_norm_eps),
                RMSNorm(weights, parts, f"{prefix}.k_norm", shape.head_dim, settings.qk_norm_eps),
            )

    def __call__(self, x: Tensor, inputs: StepInputs, cos: Tensor, sin: Tensor) -> Tensor:
        shape, cache, plan = self._shape, inputs.caches[self._index], inputs.plans[self._index]
        query, key, value = self._qkv(x).split_with_sizes(self._sizes, dim=-1)
        query = query.reshape(-1, shape.num_heads, shape.head_dim)  # [N, Hq, D]
        key = key.reshape(-1, shape.num_kv_heads, shape.head_dim)  # [N, Hkv, D]
        value = value.reshape(-1, shape.num_kv_heads, shape.head_dim)
        if self._norms is not None:
            query, key = self._norms[0](query), self._norms[1](key)
        query, key = self._kernels.rotary(query, key, cos, sin)
        self._attention.write(key, value, cache, plan)
        attended = self._attention.attend(query, cache, plan)
        return self._output(attended.reshape(x.shape[0], -1))
