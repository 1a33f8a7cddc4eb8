"""A request as the engine sees it, and the sequences that answer it."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic

from core.pooling_params import PoolingParams
from core.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked prompt. Lower `priority` goes first under the priority policy.

    cache_salt  requests with different salts never share cached prefixes
    pooling     what is wanted of the text; None: answers, under `params`
    second      of two texts, the index of the second one's first token; None: it is one, or the model need not know
    skip        leading tokens that are not pooled
    arrived_at  when it was asked, by the monotonic clock, which the processes of a machine share
    is_chat     the prompt was rendered from a conversation
    trace       W3C Trace Context that it came with: traceparent, and tracestate; for observers, as is_chat is
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    cache_salt: str = ""
    pooling: PoolingParams | None = None
    second: int | None = None
    skip: int = 0
    arrived_at: float = field(default_factory=monotonic, compare=False)
    is_chat: bool = False
    trace: Mapping[str, str] = field(default_factory=dict[str, str])


class State(Enum):
    """Where a sequence is. A preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being written: its tokens, how far they are computed, and the blocks that hold them.

    token_ids     prompt and answer; the scheduler appends
    num_computed  leading tokens whose keys and values are in the cache
    blocks        per cache group, in token order; 0 where a sliding window has passed
    hashes        one per full block of token_ids, as far as somebody asked
    registered    leading blocks already offered to the prefix index
    admitted_at   when it was first admitted, by the monotonic clock; None before
    num_cached    prompt tokens found in the prefix cache when it was first admitted; None before
    num_reported  leading tokens after which the log-probability of the next was given out, if it was asked for
    borrowed      some of its blocks were computed by others
    mistrusts     has failed on borrowed blocks, and computes everything itself from now on
    parent        the sequence of the same request whose prompt this one forks, until it has
    """

    sequence_id: int
    request: Request
    index: int
    seed: int
    stop_ids: frozenset[int]
    max_tokens: int
    token_ids: list[int]
    num_prompt: int
    blocks: "tuple[array[int], ...]"
    parent: "Sequence | None" = None
    state: State = State.WAITING
    num_computed: int = 0
    admitted_at: float | None = None
    num_cached: int | None = None
    num_reported: int = 0
    borrowed: bool = False
    mistrusts: bool = False
    hashes: list[bytes] = field(default_factory=list[bytes])
    registered: int = 0

    @property
    def num_pending(self) -> int:
        """Known tokens that are not computed yet."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt


@dataclass(frozen=True, kw_only=True)
class SequenceLimits:
    """What ends a sequence besides its own params."""

    max_model_len: int
    eos_token_ids: frozenset[int]


def sequences_of(
    request: Request, first_id: int, seed: int, limits: SequenceLimits, num_groups: int
) -> list[Sequence]:
    """The n sequences of a request. The first computes the prompt, the others fork it."""
    params, prompt = request.params, request.prompt_token_ids
    stop_ids = frozenset(params.stop_token_ids)
    if not params.ignore_eos:
        stop_ids |= limits.eos_token_ids
    room = limits.max_model_len - len(prompt)
    sequences: list[Sequence] = []
    for index in range(params.n):
        sequences.append(
            Sequence(
                sequence_id=first_id + index,
                request=request,
                index=index,
                seed=seed + index,
                stop_ids=stop_ids,
                max_tokens=min(params.max_tokens or room, room),
                token_ids=list(prompt),
                num_prompt=len(prompt),
                blocks=tuple(array("i") for _ in range(num_groups)),
                parent=sequences[0] if index else None,
            )
        )
    return sequences
