"""OpenVINO GenAI's ContinuousBatchingPipeline. Option: `kv`, the precision of the cache (its own choice unless given).

The model is a folder of OpenVINO's own format, whose weights are already in 16, 8 or 4 bits; in float32 only the mode
decides. It brings no server; `openvino_server.py` is the smallest one around the same pipeline.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines import InProcess, Settings, only, pinned


def environment(settings: Settings) -> dict[str, str]:
    return pinned(settings.threads)


def pipeline(settings: Settings) -> Any:
    """A pipeline with prefix caching, and room for 2,048 tokens and 64 sequences in a step."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = settings.cache_gib
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 64
    scheduler.dynamic_split_fuse = True
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32" if settings.mode == "f32" else "bf16",
        "INFERENCE_NUM_THREADS": settings.threads,
    }
    if "kv" in only(settings.options, "kv"):
        properties["KV_CACHE_PRECISION"] = settings.options["kv"]
    return openvino_genai.ContinuousBatchingPipeline(settings.model, scheduler, "CPU", properties, {})


class _Engine(InProcess):
    def __init__(self, settings: Settings) -> None:
        import openvino_genai

        self.version: str = openvino_genai.__version__
        self._pipeline = pipeline(settings)

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_new
        config.ignore_eos, config.do_sample = True, False
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        outputs = self._pipeline.generate(tensors, [config] * len(prompts))
        return [list(output.m_generation_ids[0]) for output in outputs]


def load(settings: Settings) -> _Engine:
    return _Engine(settings)


def serve(settings: Settings, port: int) -> list[str]:
    server = Path(__file__).parent.parent / "openvino_server.py"
    return [settings.program, str(server), str(port), json.dumps(asdict(settings))]
