"""`llm generate`: continue one prompt."""

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import engine as engines
from cli.failures import CommandError, UsageError
from cli.options import Given, takes
from cli.tables import ENGINE, SAMPLING
from cli.terminal import Status, dim, write, write_json
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from core.llm import LLM

MAX_TOKENS = 128


@takes(
    ENGINE.showing(seed="a new one each time"),
    SAMPLING.showing(max_tokens=str(MAX_TOKENS)),
)
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - reads standard input.")] = None,
    stream: Annotated[
        bool, typer.Option(help="Show text while it is generated, if one answer is asked for.")
    ] = True,
    echo: Annotated[
        bool | None,
        typer.Option(help="Show the prompt before its continuation.", show_default="on a terminal"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    engine: Given,
    sampling: Given,
) -> None:
    """Continue a prompt.

    Only text goes to standard output; status goes to standard error.
    """
    text = _prompt(prompt)
    given = engines.given_sampling(sampling, seed=engine.get("seed"), max_tokens=MAX_TOKENS)
    status = Status(quiet=quiet)
    begin = time.perf_counter()
    with engines.opened(engines.engine_config(engine), status) as llm:
        params = engines.sampling_params(given, llm.info.sampling_defaults)
        loaded = time.perf_counter()
        if json:
            output = _finished(llm, text, params)
            seconds = {"load": loaded - begin, "generate": time.perf_counter() - loaded}
            write_json(_as_dict(llm, output, params, seconds))
            return
        if sys.stdout.isatty() if echo is None else echo:
            write(dim(text, sys.stdout))
        if stream and params.n == 1:
            output = _stream(llm, text, params)
        else:
            output = _finished(llm, text, params)
            write(_answers(output))
        write("\n")
        status.note(_summary(output, time.perf_counter() - loaded))


def _prompt(argument: str | None) -> str:
    if argument is None and sys.stdin.isatty():
        raise UsageError('there is no prompt; write  llm generate "The capital of France is"')
    text = argument
    if argument is None or argument == "-":
        text = sys.stdin.read().removesuffix("\n")
    if not text:
        raise UsageError("the prompt is empty; give at least one character")
    return text


def _stream(llm: "LLM", prompt: str, params: SamplingParams) -> RequestOutput:
    """Write the text as it grows; returns the finished output."""
    output, shown = None, 0
    for output in llm.stream(prompt, params):
        text = output.outputs[0].text
        write(text[shown:])
        shown = len(text)
    return _checked(output)


def _finished(llm: "LLM", prompt: str, params: SamplingParams) -> RequestOutput:
    return _checked(llm.generate([prompt], params, use_tqdm=False)[0])


def _checked(output: RequestOutput | None) -> RequestOutput:
    if output is None or output.error is not None:
        raise CommandError(output.error if output and output.error else "the engine gave no answer")
    return output


def _answers(output: RequestOutput) -> str:
    if len(output.outputs) == 1:
        return output.outputs[0].text
    total = len(output.outputs)
    return "\n".join(f"--- {answer.index + 1} of {total}\n{answer.text}" for answer in output.outputs)


def _summary(output: RequestOutput, seconds: float) -> str:
    tokens = sum(len(answer.token_ids) for answer in output.outputs)
    reasons = ", ".join(str(answer.finish_reason) for answer in output.outputs)
    rate = tokens / max(seconds, 1e-9)
    return (
        f"{len(output.prompt_token_ids)} prompt tokens, {tokens} new ones, {rate:.1f} per second ({reasons})"
    )


def _as_dict(
    llm: "LLM", output: RequestOutput, params: SamplingParams, seconds: dict[str, float]
) -> dict[str, Any]:
    return {
        "model": llm.info.model,
        "prompt": output.prompt,
        "seed": params.seed,
        "temperature": params.temperature,
        "outputs": [_answer_as_dict(answer) for answer in output.outputs],
        "prompt_logprobs": output.prompt_logprobs and [_position(entry) for entry in output.prompt_logprobs],
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_tokens": output.num_cached_tokens,
            "completion_tokens": sum(len(answer.token_ids) for answer in output.outputs),
        },
        "seconds": seconds,
    }


def _answer_as_dict(answer: CompletionOutput) -> dict[str, Any]:
    logprobs = answer.logprobs and [_position(entry) for entry in answer.logprobs]
    return {
        "index": answer.index,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "cumulative_logprob": answer.cumulative_logprob,
        "logprobs": logprobs,
    }


def _position(entry: Any) -> list[dict[str, Any]] | None:
    """One position's candidates as a list, the chosen token first."""
    return entry and [{"token_id": token, **asdict(candidate)} for token, candidate in entry.items()]
