"""Perplexity of a model on a fixed text: what a dtype or a quantisation costs in accuracy.

    python benchmarks/perplexity.py --model smollm2-135m --dtype bfloat16 --quantization int8

Perplexity is exp of the mean negative log-probability per token, each window of the text on its own. Figures
compare only with others of the same text, tokens and window; the text's hash is printed for that. The text is the
language reference that ships with CPython, whose wording changes a little between versions: English prose and code
that needs no download and no licence of its own here. Models have read it, so its perplexity is low and says
nothing about one model against another; the difference between two ways of running one model is what counts.
Another text: --text FILE.
"""

import argparse
import hashlib
import math
from pathlib import Path
from pydoc_data.topics import topics

from core import LLM, SamplingParams

CHARACTERS = 60_000


def fixed_text() -> str:
    """The first topics of the language reference, in alphabetical order."""
    return "\n\n".join(topics[name] for name in sorted(topics))[:CHARACTERS]


def perplexity(llm: LLM, text: str, window: int) -> tuple[float, int]:
    """(perplexity, tokens scored). The first token of a window has nothing before it and is not scored."""
    ids = llm.get_tokenizer().encode(text)
    windows = [ids[first : first + window] for first in range(0, len(ids), window)]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    total, count = 0.0, 0
    for output in llm.generate([part for part in windows if len(part) > 1], params):
        if output.error is not None or output.prompt_logprobs is None:
            raise SystemExit(f"a window failed: {output.error}")
        for token, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            assert position is not None
            total -= position[token].logprob
            count += 1
    return math.exp(total / count), count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("model", "smollm2-135m"),
        ("platform", "auto"),
        ("dtype", "auto"),
        ("quantization", "auto"),
        ("kv-cache-dtype", "auto"),
    ):
        parser.add_argument(f"--{name}", default=default, help=f"as for llm generate [default: {default}]")
    parser.add_argument("--window", type=int, default=1024, help="tokens read at once [default: 1024]")
    parser.add_argument("--text", type=Path, help="a text file instead of the fixed text")
    given = parser.parse_args()
    text = fixed_text() if given.text is None else given.text.read_text()
    engine = {name: getattr(given, name) for name in ("platform", "dtype", "quantization", "kv_cache_dtype")}
    # One token is always generated, so the context is a token longer than a window.
    with LLM(given.model, max_model_len=given.window + 1, **engine) as llm:
        found, count = perplexity(llm, text, given.window)
        held = next(choice.detail for choice in llm.ledger.choices if choice.what == "weights")
        print(
            f"perplexity {found:.4f} over {count} tokens in windows of {given.window}; "
            f"{llm.info.model} on {llm.info.platform}, weights: {held}, cache: {llm.info.kv_cache_dtype}; "
            f"text {hashlib.sha256(text.encode()).hexdigest()[:12]}"
        )


if __name__ == "__main__":
    main()
