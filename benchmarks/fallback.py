"""What it costs to run a model through the code of transformers instead of natively: tokens per second of both.

    python benchmarks/fallback.py --platform cpu

A Llama of SmolLM2-135M's shape with made-up weights, so that nothing is downloaded. Prefill is of prompts that share
nothing; decoding is what 64 more tokens take. The least of several rounds, the two ways in turn.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from core import LLM, SamplingParams

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
PROMPT, ANSWER = 256, 64


def seconds(llm: LLM, batch: int, max_tokens: int) -> float:
    """How long so many prompts and answers take, none of them seen before."""
    prompts = [[random.randrange(100, 49000) for _ in range(PROMPT)] for _ in range(batch)]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", default="auto", help="as for llm generate [default: auto]")
    parser.add_argument("--dtype", default="bfloat16", help="as for llm generate [default: bfloat16]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts [default: 3]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        engines = {
            model_impl: LLM(
                folder,
                model_impl=model_impl,
                platform=given.platform,
                dtype=given.dtype,
                load_format="dummy",
                skip_tokenizer_init=True,
            )
            for model_impl in ("native", "transformers")
        }
    print(f"{'':14}{'batch':>6}{'prefill':>10}{'decode':>10}   tokens per second")
    for batch in (1, 16):
        best = {name: [float("inf")] * 2 for name in engines}
        for _ in range(given.rounds):
            for name, llm in engines.items():
                first, whole = seconds(llm, batch, 1), seconds(llm, batch, 1 + ANSWER)
                best[name] = [min(best[name][0], first), min(best[name][1], whole - first)]
        for name, (prefill, decode) in best.items():
            print(f"{name:14}{batch:6}{batch * PROMPT / prefill:10.0f}{batch * ANSWER / decode:10.1f}")


if __name__ == "__main__":
    main()
