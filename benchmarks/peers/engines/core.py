"""This project's engine, through its public API. Options: every keyword of `LLM`."""

from pathlib import Path
from typing import Any

from engines import InProcess, Settings, pinned

LONGEST = 4096


def environment(settings: Settings) -> dict[str, str]:
    return pinned(settings.threads)


def keywords(settings: Settings) -> dict[str, Any]:
    """What `LLM` and, as options, `llm serve` are given."""
    chosen = {
        "dtype": "float32" if settings.mode == "f32" else "bfloat16",
        "max_model_len": LONGEST,
        "kv_cache_memory": f"{settings.cache_gib}GiB",
    }
    if settings.mode in ("int8", "int4"):
        chosen["quantization"] = settings.mode
    return chosen | settings.options


class _Engine(InProcess):
    def __init__(self, settings: Settings) -> None:
        import core

        self.version = core.__version__
        self._params = core.SamplingParams
        self._llm = core.LLM(settings.model, **keywords(settings))
        layer = [choice for choice in self._llm.ledger.choices if choice.what == "decoder_layer"]
        if not any(choice.provider == self._llm.info.platform for choice in layer):
            raise SystemExit(
                f"this engine runs without its native kernels, which is not what is compared: {layer}. "
                "See  llm doctor."
            )

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        params = self._params(temperature=0, max_tokens=num_new, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self._llm.shutdown()


def load(settings: Settings) -> _Engine:
    return _Engine(settings)


def serve(settings: Settings, port: int) -> list[str]:
    """`llm`, beside the interpreter in its environment."""
    command = [str(Path(settings.program).with_name("llm")), "serve", settings.model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    for name, value in keywords(settings).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return command
