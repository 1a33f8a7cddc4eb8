"""How much may wait for an engine."""

import pytest

from core.engine.request import Request
from core.engine.room import Room
from core.errors import QueueFull, RequestError
from core.sampling_params import SamplingParams


def request(request_id: str, num_tokens: int = 10) -> Request:
    return Request(
        request_id=request_id, prompt_token_ids=list(range(num_tokens)), params=SamplingParams(max_tokens=1)
    )


def test_requests_are_counted_from_their_making_to_their_end() -> None:
    room = Room(max_requests=2)
    with room.preparing():
        assert room.num_requests == 1
        room.check(1)
        with pytest.raises(QueueFull, match="1 requests are unfinished and at most 2 may be"):
            room.check(2)
    room.enter(request("a"))
    room.begin("a")
    assert room.num_requests == 1
    room.leave("a")
    assert room.num_requests == 0


def test_more_requests_than_ever_fit_are_the_clients_error() -> None:
    with pytest.raises(RequestError, match="at most 2 are taken"):
        Room(max_requests=2).check(3)


def test_prompt_tokens_are_counted_until_the_first_token() -> None:
    room = Room(max_tokens=25)
    room.enter(request("a"))
    room.enter(request("b"))
    assert room.num_waiting_tokens == 20
    room.check(1, 5)
    with pytest.raises(QueueFull, match=r"20 prompt tokens wait .* \(max_queued_tokens\)") as caught:
        room.check(1, 6)
    assert caught.value.retry_after > 0

    room.begin("a")
    room.check(1, 15)
    room.leave("b")
    assert room.num_waiting_tokens == 0


def test_a_prompt_longer_than_all_that_may_wait_is_taken_when_nothing_does() -> None:
    room = Room(max_tokens=5)
    room.check(1, 10)
    room.enter(request("long"))
    with pytest.raises(QueueFull):
        room.check()


def test_a_full_queue_is_known_before_a_prompt_is_tokenized() -> None:
    room = Room(max_tokens=10)
    room.enter(request("a"))
    with pytest.raises(QueueFull):
        room.check()
