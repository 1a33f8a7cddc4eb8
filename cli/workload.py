"""What `llm bench` sends: random token ids, or the first exchange of ShareGPT conversations.

A ShareGPT file is a JSON list of conversations:

    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.failures import CommandError, UsageError, file_errors
from cli.options import Given, Table

if TYPE_CHECKING:
    from random import Random

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How prompts are made. Raises UsageError naming the option that is refused.

    range_ratio  lengths vary evenly between (1 - ratio) and (1 + ratio) times what was asked
    """

    num_prompts: int = 64
    input_len: int = 128
    output_len: int | None = None
    range_ratio: float = 0.0
    dataset: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "input_len", "output_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; at least 1 is accepted")
        if not 0 <= self.range_ratio < 1:
            raise UsageError(
                f"--range-ratio is {self.range_ratio}; 0 up to, but not including, 1 is accepted"
            )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: its tokens, and how many to generate."""

    token_ids: list[int]
    num_output: int


WORKLOAD = Table(
    keyword="workload",
    panel="Workload",
    source=Workload,
    defaults={"output_len": "128; of a dataset, its own", "dataset": "random tokens"},
    help={
        "num_prompts": "Requests to send, all at once.",
        "input_len": "Tokens per random prompt.",
        "output_len": "Tokens to generate per prompt; the end-of-sequence token is ignored.",
        "range_ratio": "Random lengths vary by up to this part of what was asked, 0 to 1.",
        "dataset": "ShareGPT-format JSON file to take prompts and answer lengths from.",
    },
)
DEFAULT_OUTPUT_LEN = 128


def make_prompts(
    workload: Workload, *, vocab_size: int, max_model_len: int, encode: Encode | None
) -> list[Prompt]:
    """`workload.num_prompts` prompts that fit the model; the same ones for the same seed.

    Raises CommandError when they do not fit, or the dataset does not hold any that do.
    """
    from random import Random

    source = Random(workload.seed)
    if workload.dataset is None:
        return _random_prompts(workload, source, vocab_size, max_model_len)
    if encode is None:
        raise UsageError(
            "--dataset holds text, and --skip-tokenizer-init leaves no tokenizer to read it with"
        )
    found = exchanges(workload.dataset)
    source.shuffle(found)
    prompts: list[Prompt] = []
    for question, answer in found:
        prompt = Prompt(encode(question), workload.output_len or len(encode(answer)))
        if (
            prompt.token_ids
            and prompt.num_output
            and len(prompt.token_ids) + prompt.num_output <= max_model_len
        ):
            prompts.append(prompt)
        if len(prompts) == workload.num_prompts:
            return prompts
    raise CommandError(
        f"{workload.dataset} holds {len(prompts)} exchanges that fit max_model_len {max_model_len:,}, and "
        f"{workload.num_prompts} were asked for; lower --num-prompts"
    )


def _random_prompts(
    workload: Workload, source: "Random", vocab_size: int, max_model_len: int
) -> list[Prompt]:
    output_len = workload.output_len or DEFAULT_OUTPUT_LEN
    longest = sum(_bounds(length, workload.range_ratio)[1] for length in (workload.input_len, output_len))
    if longest > max_model_len:
        raise CommandError(
            f"a request of up to {longest:,} tokens exceeds max_model_len {max_model_len:,}; lower "
            "--input-len, --output-len or --range-ratio"
        )
    prompts: list[Prompt] = []
    for _ in range(workload.num_prompts):
        length = source.randint(*_bounds(workload.input_len, workload.range_ratio))
        num_output = source.randint(*_bounds(output_len, workload.range_ratio))
        prompts.append(Prompt([source.randrange(vocab_size) for _ in range(length)], num_output))
    return prompts


def _bounds(length: int, ratio: float) -> tuple[int, int]:
    return max(1, round(length * (1 - ratio))), round(length * (1 + ratio))


def exchanges(path: Path) -> list[tuple[str, str]]:
    """First question and answer of every conversation in a ShareGPT file."""
    with file_errors(f"read {path}"):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{path} is not JSON: {error}") from None
    found = list(_readable(entries)) if isinstance(entries, list) else []
    if not found:
        raise CommandError(
            f'{path} holds no conversation; expected [{{"conversations": [{{"from": "human", "value": "…"}}, '
            '{"from": "gpt", "value": "…"}]}, …]'
        )
    return found


def _readable(entries: list[Any]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, dict) for turn in turns[:2]):
            question, answer = turns[0].get("value"), turns[1].get("value")
            if isinstance(question, str) and isinstance(answer, str):
                yield question, answer


def workload_of(given: Given, **defaults: Any) -> Workload:
    """The workload that the user asked for, over a command's own defaults."""
    return Workload(**{**defaults, **given})
