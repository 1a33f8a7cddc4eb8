"""A mixture of experts as the feed-forward half of a layer: its weights by their names, and the kernel that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.kernels import MoeWeights, Routing
from core.contracts.model import Parts, Weights
from core.contracts.quantization import Weight
from core.layers.settings import FeedForwardSettings, MlpSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MoeSettings(FeedForwardSettings):
    """Gated MLPs of which each token goes through a few.

    router             name of the projection that ranks experts
    bias               whole name of what is added to their scores for that; None: nothing is
    up, down           whole names of an expert's weights, "{e}" standing for its number; without it, all experts lie
                       behind one another in one weight. `up` is (gate, up), or one that is both, gate first
    intermediate_size  of an expert
    down_transposed    `down` is stored as [in, out]
    shared             an MLP that every token goes through, too
    shared_gate        name of the projection that weighs it; None: it counts as it is
    """

    router: str
    num_experts: int
    routing: Routing
    up: tuple[str, ...]
    down: str
    intermediate_size: int
    bias: str | None = None
    down_transposed: bool = False
    shared: MlpSettings | None = None
    shared_gate: str | None = None

    def make(self, weights: Weights, parts: Parts, hidden: int) -> "Callable[[Tensor], Tensor]":
        """Takes its weights; returns a function x [N, H] -> [N, H]."""
        from core.layers.mlp import take_down, take_up

        count, shared, gate = self.num_experts, self.shared, self.shared_gate
        taken = MoeWeights(
            router=weights.take(f"{self.router}.weight", count, hidden, dtype="float32"),
            bias=None if self.bias is None else weights.take(self.bias, count, dtype="float32"),
            gate_up=tuple(self._gate_up(weights, hidden, e) for e in range(count)),
            down=tuple(self._down(weights, hidden, e) for e in range(count)),
            shared_gate_up=None if shared is None else take_up(weights, hidden, shared),
            shared_down=None if shared is None else take_down(weights, hidden, shared),
            shared_gate=None if gate is None else weights.take(f"{gate}.weight", 1, hidden, dtype="float32"),
        )
        return parts.kernels.moe(taken, self.routing)

    def _gate_up(self, weights: Weights, hidden: int, expert: int) -> Weight:
        names = [name.format(e=expert) for name in self.up]
        sizes = [2 * self.intermediate_size // len(names)] * len(names)
        return weights.take_linear(names, sizes, hidden, part=self._part(self.up[0], expert))

    def _down(self, weights: Weights, hidden: int, expert: int) -> Weight:
        return weights.take_linear(
            [self.down.format(e=expert)],
            [hidden],
            self.intermediate_size,
            transposed=self.down_transposed,
            part=self._part(self.down, expert),
        )

    def _part(self, name: str, expert: int) -> tuple[int, int] | None:
        return None if "{e}" in name else (expert, self.num_experts)
