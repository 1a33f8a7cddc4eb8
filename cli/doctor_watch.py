"""A stopwatch around every kernel that a model calls.

It goes where an architecture is handed its parts, so that nothing of the core knows of it. What a platform runs whole
stays whole: a layer in one call is timed as one.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from core.contracts.attention import Attention, AttentionBatch, CacheLayout, LayerCache
from core.contracts.kernels import Kernels
from core.contracts.model import Architecture, Model, ModelDescription, Parts, Weights
from core.contracts.platform import Device, Platform
from core.discovery import Plugins
from core.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor


class Stopwatch:
    """Seconds that calls took, by name, without what they called that has a name of its own."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize  # what was submitted is done only when the device says so
        self._within: list[float] = []  # of each call that is under way, the seconds of the calls inside it

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its calls counted under this name."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._synchronize()
            self._within.append(0.0)
            begin = perf_counter()
            try:
                result = function(*arguments, **keywords)
                self._synchronize()
                return result
            finally:
                spent, within = perf_counter() - begin, self._within.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - within
                if self._within:
                    self._within[-1] += spent

        return call


class TimedAttention(Attention):
    """Another attention, with its writing and attending counted as "attention"."""

    def __init__(self, attention: Attention, watch: Stopwatch) -> None:
        self.spec = attention.spec
        self._attention = attention
        self._write = watch.timed("attention", attention.write)
        self._attend = watch.timed("attention", attention.attend)

    def layout(self, num_blocks: int) -> CacheLayout:
        return self._attention.layout(num_blocks)

    def plan(self, batch: AttentionBatch) -> Any:
        return self._attention.plan(batch)

    def write(self, key: "Tensor", value: "Tensor", cache: LayerCache, plan: Any) -> None:
        self._write(key, value, cache, plan)

    def attend(self, query: "Tensor", cache: LayerCache, plan: Any) -> "Tensor":
        return self._attend(query, cache, plan)


def watch_for(platform: Platform, device: Device) -> Stopwatch:
    """A stopwatch that waits for this device."""
    from core.execution.dispatch import resolve_execution

    return Stopwatch(resolve_execution(platform, device, Ledger()).synchronize)


def watched(plugins: Plugins, composed: Collection[str], watch: Stopwatch) -> Plugins:
    """The same plugins, whose models are built from kernels that are timed.

    composed  kernels that the core makes of finer ones, as a ledger says: made again, of timed ones
    """

    def timed(architecture: Architecture) -> Architecture:
        def build(description: ModelDescription, weights: Weights, parts: Parts) -> Model:
            return architecture.build(description, weights, _timed_parts(parts, composed, watch))

        return replace(architecture, build=build)

    return replace(plugins, architectures={name: timed(each) for name, each in plugins.architectures.items()})


def _timed_parts(parts: Parts, composed: Collection[str], watch: Stopwatch) -> Parts:
    from core.reference.attention import ReferenceAttention

    def attention(given: Attention | None) -> Attention | None:
        if given is None:
            return None
        # A layer that a platform runs whole may know its own attention by its class; the reference it does not.
        free = "decoder_layer" in composed or isinstance(given, ReferenceAttention)
        return TimedAttention(given, watch) if free else given

    kernels = _timed_kernels(parts.kernels, composed, watch)
    return replace(parts, kernels=kernels, attention=tuple(attention(each) for each in parts.attention))


def _timed_kernels(kernels: Kernels, composed: Collection[str], watch: Stopwatch) -> Kernels:
    from core import reference

    def made(name: str) -> Callable[..., Any]:
        declared = reference.KERNELS[name]
        if name in composed:
            return lambda *arguments: declared.reference(result, *arguments)
        return getattr(kernels, name)

    def timed(name: str) -> Callable[..., Any]:
        function = made(name)
        if not reference.KERNELS[name].prepared:
            return watch.timed(name, function)
        return lambda *weights: watch.timed(name, function(*weights))

    result = Kernels(**{name: timed(name) for name in reference.KERNELS})
    return result
