"""vLLM on the processor. Options: `eager` (true unless given: no compiler at the start), `max_num_seqs` (64)."""

import os
from typing import Any

from engines import InProcess, Settings, only

LONGEST = 4096


def environment(settings: Settings) -> dict[str, str]:
    """vLLM binds its own threads; OMP_* would disturb it."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings.threads - 1}",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _dtype(settings: Settings) -> str:
    return "float32" if settings.mode == "f32" else "bfloat16"


def _options(settings: Settings) -> dict[str, Any]:
    return {"eager": True, "max_num_seqs": 64} | only(settings.options, "eager", "max_num_seqs")


class _Engine(InProcess):
    def __init__(self, settings: Settings) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the clock and the engine in one process
        import vllm

        options = _options(settings)
        self.version = vllm.__version__
        self._params, self._prompt = vllm.SamplingParams, vllm.TokensPrompt
        self._llm = vllm.LLM(
            model=settings.model,
            dtype=_dtype(settings),
            max_model_len=LONGEST,
            enable_prefix_caching=True,
            max_num_seqs=options["max_num_seqs"],
            enforce_eager=options["eager"],
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        params = self._params(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)
        wrapped = [self._prompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = self._llm.generate(wrapped, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def load(settings: Settings) -> _Engine:
    return _Engine(settings)


def serve(settings: Settings, port: int) -> list[str]:
    options = _options(settings)
    command = [settings.program, "-m", "vllm.entrypoints.openai.api_server", "--model", settings.model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    command += ["--dtype", _dtype(settings), "--max-model-len", str(LONGEST)]
    command += ["--max-num-seqs", str(options["max_num_seqs"])]
    return [*command, "--enforce-eager"] if options["eager"] else command
