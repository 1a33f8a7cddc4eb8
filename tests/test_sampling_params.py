"""SamplingParams accept what they document and refuse everything else by name, before an engine sees it."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import SamplingParams
from core.errors import RequestError

# field -> (lowest, highest) accepted; None in OPTIONAL too
WHOLE = {
    "n": (1, 128),
    "top_k": (0, 2**31),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 2**31),
    "min_tokens": (0, 2**31),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
REAL = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-9, 100.0),
}
OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")
FLAGS = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize")
NO_NUMBERS: list[Any] = [True, False, "1", "nan", b"1", [1], {}, (1,), object(), 1j]
NO_REALS = [math.nan, math.inf, -math.inf, 1e400, 10**400, -(10**400), 10**5000]


def refused(**given: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**given)
    (name,) = given
    assert caught.value.parameter == name
    assert name in str(caught.value)
    assert len(str(caught.value)) < 300
    return caught.value


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_accepted_to_the_edge_of_their_range_and_not_beyond(name: str) -> None:
    low, high = WHOLE[name]
    others = {"max_tokens": None} if name == "min_tokens" else {}
    for value in (low, high):
        assert getattr(SamplingParams(**{name: value} | others), name) == value
    beyond = [low - 1 if name != "top_k" else -2, high + 1, -(2**80), 2**80]
    for value in beyond:
        assert f"from {low} to {high}" in str(refused(**{name: value}))


@pytest.mark.parametrize("name", REAL)
def test_real_numbers_are_accepted_to_the_edge_of_their_range_and_not_beyond(name: str) -> None:
    low, high = REAL[name]
    for value in (low, high, round(high)):
        assert getattr(SamplingParams(**{name: value}), name) == value
    beyond = [math.nextafter(high, math.inf), high + 1]
    beyond += [0.0, -0.0, -1e-9] if low == 1e-9 else [math.nextafter(low, -math.inf), low - 1]
    for value in beyond:
        refused(**{name: value})


@pytest.mark.parametrize("name", [*WHOLE, *REAL])
def test_what_is_no_number_is_refused(name: str) -> None:
    values = NO_NUMBERS + NO_REALS + ([1.0, 1.5] if name in WHOLE else [])
    for value in values if name in OPTIONAL else [*values, None]:
        refused(**{name: value})


@given(
    name=st.sampled_from([*WHOLE, *REAL]), value=st.one_of(st.integers(), st.floats(), st.text(), st.binary())
)
def test_any_value_is_accepted_or_refused_by_name(name: str, value: Any) -> None:
    try:
        SamplingParams(**{name: value} | ({"max_tokens": None} if name == "min_tokens" else {}))
    except RequestError as error:
        assert error.parameter == name


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_numbers_may_be_none(name: str) -> None:
    assert getattr(SamplingParams(**{name: None}), name) is None


@pytest.mark.parametrize("name", FLAGS)
def test_switches_are_true_or_false_and_nothing_like_it(name: str) -> None:
    assert getattr(SamplingParams(**{name: True}), name) is True
    for value in (0, 1, "true", None, []):
        refused(**{name: value})


def test_top_k_of_minus_one_means_all_as_it_does_in_vllm() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5, more than max_tokens 4") as caught:
        SamplingParams(min_tokens=5, max_tokens=4)
    assert caught.value.parameter == "min_tokens"
    assert SamplingParams(min_tokens=4, max_tokens=4).min_tokens == 4
    assert SamplingParams(min_tokens=400, max_tokens=None).min_tokens == 400


def test_stop_is_one_string_or_several() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop=["x" * 256] * 16).stop == ("x" * 256,) * 16


def test_lists_that_are_none_are_empty_as_in_scripts_for_vllm() -> None:
    params: Any = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None)  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.logit_bias) == ((), (), {})


@pytest.mark.parametrize(
    "stop", ["", [""], ["a", 5], [None], ["x" * 257], ["x"] * 17, 5, 1.5, True, [["a"]], b"ab"]
)
def test_other_stops_are_refused(stop: Any) -> None:
    refused(stop=stop)


@pytest.mark.parametrize(
    "ids", [5, "5", ["5"], [1.5], [True], [-1], [2**31 + 1], [None], [[1]], {"a": 1}, math.nan, [0] * 1025]
)
def test_stop_token_ids_that_are_no_ids_are_refused(ids: Any) -> None:
    refused(stop_token_ids=ids)


def test_stop_strings_without_text_are_refused_with_the_way_out() -> None:
    with pytest.raises(RequestError, match="use stop_token_ids instead"):
        SamplingParams(stop="a", detokenize=False)


def test_logit_bias_takes_ids_as_numbers_or_as_json_spells_them() -> None:
    assert SamplingParams(logit_bias={5: 1, "7": -100.0}).logit_bias == {5: 1, 7: -100.0}  # type: ignore[dict-item]
    assert len(SamplingParams(logit_bias=dict.fromkeys(range(1024), 1.0)).logit_bias) == 1024


@pytest.mark.parametrize(
    "bias",
    [
        {5: math.nan},
        {5: math.inf},
        {5: 100.5},
        {5: -101},
        {5: "1"},
        {5: True},
        {5: None},
        {-1: 1},
        {2**32: 1},
        {"a": 1},
        {1.5: 1},
        {True: 1},
        {None: 1},
        {(1,): 1},
        {10**5000: 1},
        dict.fromkeys(range(1025), 1.0),
        [1, 2],
        [(1, 2.0)],
        "5",
        5,
    ],
    ids=lambda bias: str(type(bias).__name__) + repr(bias)[:12] if not isinstance(bias, dict) else None,
)
def test_other_biases_are_refused(bias: Any) -> None:
    refused(logit_bias=bias)


def test_a_copy_with_changes_is_checked_again() -> None:
    params = SamplingParams(temperature=0.5, stop="a", logit_bias={3: 1.0})
    assert params.with_(n=2) == SamplingParams(temperature=0.5, stop="a", logit_bias={3: 1.0}, n=2)
    with pytest.raises(RequestError):
        params.with_(temperature=-1)


def test_parameters_cannot_be_changed_in_place() -> None:
    params = SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 2.0  # type: ignore[misc]


def test_defaults_stand_behind_what_was_given_and_unknown_ones_are_skipped() -> None:
    params = SamplingParams.from_defaults({"temperature": 0.2, "top_k": 7, "typical_p": 1}, top_k=9)
    assert (params.temperature, params.top_k, params.top_p) == (0.2, 9, 1.0)


def test_a_misspelt_parameter_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]
