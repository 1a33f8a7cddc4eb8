"""A platform that enters at level 2: its runner keeps weights and cache in numpy arrays and computes a Llama
itself. Scheduler, block tables and sampling are the core's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from core import hookimpl
from core.contracts.memory import MemoryStatistics
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.contracts.runner import Batch, CacheGroup, Runner, RunnerContext, ScheduledSequence, SequenceResult
from core.execution.sampler import Sampler
from core.reference.argmax import argmax
from core.reference.sample import sample

Array = np.ndarray[Any, Any]


class NumpyRunner(Runner):
    """Keys and values are [num_layers, num_blocks, block_size, num_kv_heads, head_dim]."""

    def __init__(self, context: RunnerContext) -> None:
        config, self.shape = context.checkpoint.config, context.description.layers[0]
        self.context, self.block_size = context, context.settings.block_size
        self.layers, self.eps = len(context.description.layers), float(config["rms_norm_eps"])
        half = np.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        self.frequencies = float(config["rope_parameters"]["rope_theta"]) ** -half
        self.sampler = Sampler(argmax, sample)

    def load(self) -> None:
        checkpoint = self.context.checkpoint
        self.weights = {name: checkpoint.read(name).float().numpy() for name in checkpoint.names()}

    def block_bytes(self, group: CacheGroup) -> int:
        return 2 * len(group.layers) * self.block_size * self.shape.num_kv_heads * self.shape.head_dim * 4

    def memory_statistics(self) -> MemoryStatistics:
        return MemoryStatistics(total=2**30, allocated=0, free=2**30)

    def allocate_cache(self, num_blocks: Sequence[int]) -> None:
        shape = (self.layers, num_blocks[0], self.block_size, self.shape.num_kv_heads, self.shape.head_dim)
        self.keys, self.values = (np.full(shape, np.nan, np.float32) for _ in range(2))

    def step(self, batch: Batch) -> list[SequenceResult]:
        for source, destination in batch.copies[0]:
            for storage in (self.keys, self.values):
                storage[:, destination] = storage[:, source]
        parts, ends = batch.sequences, np.cumsum([part.num_tokens for part in batch.sequences])
        ids = [token for p in parts for token in p.token_ids[p.start : p.start + p.num_tokens]]
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, name + "input_layernorm"), name + "self_attn.", layer, parts)
            y = self.norm(x, name + "post_attention_layernorm")
            gate = self.linear(y, name + "mlp.gate_proj")
            gated = gate / (1 + np.exp(-gate)) * self.linear(y, name + "mlp.up_proj")
            x = x + self.linear(gated, name + "mlp.down_proj")
        sampling = [i for i, part in enumerate(parts) if part.samples]
        logits = torch.from_numpy(self.linear(self.norm(x[ends[sampling] - 1], "model.norm"), "lm_head"))
        results = [SequenceResult() for _ in parts]
        self.sampler(logits, [parts[i] for i in sampling], [results[i] for i in sampling])
        return results

    def attention(self, x: Array, name: str, layer: int, parts: Sequence[ScheduledSequence]) -> Array:
        places = [np.arange(part.start, part.start + part.num_tokens) for part in parts]
        splits, positions = np.cumsum([len(place) for place in places])[:-1], np.concatenate(places)
        heads = [self.linear(x, f"{name}{p}_proj").reshape(len(x), -1, self.shape.head_dim) for p in "qkv"]
        q, k, v = self.rotate(heads[0], positions), self.rotate(heads[1], positions), heads[2]
        caches = (self.keys[layer], self.values[layer])
        for cache, new in zip(caches, (k, v), strict=True):  # all writes come before all reads
            for part, place, rows in zip(parts, places, np.split(new, splits), strict=True):
                cache[self.slots(part, place)] = rows
        rows = zip(parts, places, np.split(q, splits), strict=True)
        out = np.concatenate([self.attend(query, part, place, caches) for part, place, query in rows])
        return self.linear(out.reshape(len(x), -1), name + "o_proj")

    def attend(
        self, query: Array, part: ScheduledSequence, place: Array, caches: tuple[Array, Array]
    ) -> Array:
        seen, group = np.arange(place[-1] + 1), self.shape.num_heads // self.shape.num_kv_heads
        keys, values = (cache[self.slots(part, seen)].repeat(group, axis=1) for cache in caches)
        scores = np.einsum("qhd,khd->hqk", query, keys) * self.shape.scale
        weights = np.exp(np.where(seen <= place[:, None], scores, -np.inf) - scores.max(-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)

    def slots(self, part: ScheduledSequence, positions: Array) -> tuple[Array, Array]:
        return np.array(part.blocks[0])[positions // self.block_size], positions % self.block_size

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[f"{name}.weight"]

    def rotate(self, x: Array, positions: Array) -> Array:
        angles = np.tile(positions[:, None] * self.frequencies, 2)[:, None].astype(np.float32)
        low, high = np.split(x, 2, axis=-1)
        return x * np.cos(angles) + np.concatenate([-high, low], axis=-1) * np.sin(angles)


class NumpyPlatform(Platform):
    contract, name, device_type, priority = (2, 0), "numpy", "cpu", -20

    def probe(self) -> Probe:
        return Probe(
            available=True, reason="always there", devices=(Device(name="numpy", torch_device="cpu"),)
        )

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32",), block_sizes=(16, 4), features=frozenset())

    def runner(self, context: RunnerContext) -> Runner:
        return NumpyRunner(context)


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [NumpyPlatform]
