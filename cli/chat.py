"""`llm chat`: a conversation in the terminal, or one user turn per line of standard input."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from cli import engine as engines
from cli import failures
from cli.failures import CommandError
from cli.options import Given, takes
from cli.tables import ENGINE, SAMPLING
from cli.terminal import Status, dim, write
from core.errors import RequestError
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from core.llm import LLM

MAX_TOKENS = 1024
PROMPT = "> "
PATIENCE = 1.0  # seconds that a step may take before a second Ctrl-C gives up on it
HELP = """\
/exit          leave (also Ctrl-D)
/reset         forget the conversation, keep the system message
/system TEXT   set the system message and forget the conversation; no TEXT removes it
/help          this list
Ctrl-C stops an answer."""


@takes(
    ENGINE.without("skip_tokenizer_init").showing(seed="a new one each time"),
    SAMPLING.without("n", "logprobs", "prompt_logprobs", "detokenize").showing(max_tokens=str(MAX_TOKENS)),
)
def chat(
    system: Annotated[str | None, typer.Option(help="System message.", envvar="LLM_SYSTEM")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    engine: Given,
    sampling: Given,
) -> None:
    """Talk with a model.

    /exit leaves, /reset forgets, /system TEXT sets the system message, /help lists these; Ctrl-C stops an
    answer. Piped input is one user turn per line.
    """
    given = engines.given_sampling(sampling, seed=engine.get("seed"), max_tokens=MAX_TOKENS)
    status = Status(quiet=quiet)
    with engines.opened(engines.engine_config(engine), status) as llm:
        params = engines.sampling_params(given, llm.info.sampling_defaults)
        conversation = Conversation(llm, params, system)
        if sys.stdin.isatty():
            status.note(f"{llm.info.model} on {llm.info.platform}. /help lists commands.")
            _talk(conversation)
        else:
            _answer_lines(conversation)


@dataclass
class Conversation:
    """The turns so far, and the engine that answers them."""

    llm: "LLM"
    params: SamplingParams
    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def answer(self, text: str, interrupt: "Interrupt") -> str | None:
        """Write the answer to `text` as it grows; returns why it ended, None when it was stopped.

        What was written of a stopped answer stays in the conversation; a turn without an answer is forgotten.

        Raises RequestError when the conversation is refused, CommandError when the engine ends it in error.
        """
        self.turns.append({"role": "user", "content": text})
        answer, reason = "", None
        try:
            for grown in self._growing(interrupt):
                answer, reason = grown
        finally:
            if answer:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()
        return reason

    def obey(self, command: str, argument: str) -> str | None:
        """Carry out a command other than /exit; returns what to tell the user."""
        if command == "/reset":
            self.turns.clear()
            return "forgotten"
        if command == "/system":
            self.system = argument or None
            self.turns.clear()
            return "system message set; conversation forgotten" if argument else "system message removed"
        return HELP if command == "/help" else f"no command is named {command}; /help lists them"

    def _growing(self, interrupt: "Interrupt") -> Iterator[tuple[str, str | None]]:
        """The answer so far and why it ended, after each step."""
        before = [{"role": "system", "content": self.system}] if self.system is not None else []
        shown = 0
        stream = self.llm.stream([*before, *self.turns], self.params)
        with closing(stream) as outputs:  # closed early, it aborts the request
            for output in outputs:
                if output.error is not None:
                    raise CommandError(output.error)
                answer = output.outputs[0]
                write(answer.text[shown:])
                shown = len(answer.text)
                yield answer.text, answer.finish_reason
                if interrupt.requested:
                    return


class GivenUp(KeyboardInterrupt):
    """Ctrl-C again, because an answer did not stop: the engine may be in the middle of anything."""


class Interrupt:
    """Turns Ctrl-C into a flag, so that the engine finishes its step. Another one, later, raises GivenUp."""

    def __init__(self) -> None:
        self.requested = False
        self._deadline = 0.0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() > self._deadline:
            raise GivenUp
        self.requested, self._deadline = True, time.monotonic() + PATIENCE


def _talk(conversation: Conversation) -> None:
    """The loop of a person at a terminal."""
    import readline  # noqa: F401  (input() edits lines and remembers them once this is imported)

    going_on = True
    while going_on:
        try:
            going_on = _turn(conversation, input(PROMPT))
        except EOFError:
            write("\n")
            return
        except GivenUp:
            raise
        except KeyboardInterrupt:
            write(dim("\n/exit or Ctrl-D leaves\n", sys.stdout))


def _turn(conversation: Conversation, line: str) -> bool:
    """One line of a person. False when it asks to leave; an error is shown and the conversation goes on."""
    command, argument = _split(line)
    if command == "/exit":
        return False
    if command:
        write(dim(f"{conversation.obey(command, argument)}\n", sys.stdout))
    elif line.strip():
        try:
            with Interrupt() as interrupt:
                reason = conversation.answer(line, interrupt)
            if reason == "length":
                write(dim(" (cut off; see --max-tokens and --max-model-len)", sys.stdout))
            elif reason is None:
                write(dim(" (stopped)", sys.stdout))
        except (RequestError, CommandError) as error:
            failures.show(error)
        write("\n\n")
    return True


def _answer_lines(conversation: Conversation) -> None:
    """One user turn per line of standard input.

    Raises CommandError at the end when a turn failed.
    """
    failed = 0
    for line in sys.stdin:
        command, argument = _split(line)
        if command == "/exit":
            break
        if command:
            print(conversation.obey(command, argument), file=sys.stderr)
        elif line.strip():
            try:
                conversation.answer(line.strip(), Interrupt())
            except (RequestError, CommandError) as error:
                failures.show(error)
                failed += 1
            write("\n")
    if failed:
        raise CommandError(f"{failed} of the turns had no answer")


def _split(line: str) -> tuple[str, str]:
    """("/system", "Be brief.") from a command; ("", "") from anything else, a path like /usr/bin included."""
    word, _, rest = line.strip().partition(" ")
    is_command = word.startswith("/") and word[1:].isalpha()
    return (word.lower().replace("/quit", "/exit"), rest.strip()) if is_command else ("", "")
