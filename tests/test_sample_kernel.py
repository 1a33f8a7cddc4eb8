"""The reference `sample`, against a slow oracle and against what sampling promises."""

import math

import pytest
import torch
from torch import Tensor

from core.reference.sample import _invert, sample
from core.reference.sample_cases import ALMOST_ONE, Row


def draw(logits: Tensor, rows: list[Row]) -> list[int]:
    temperature, top_k, top_p, min_p, uniform = (
        torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).unbind(1)
    )
    limits = (temperature.float(), top_k.long(), top_p.float(), min_p.float())
    return sample(logits.float(), *limits, uniform).tolist()


def oracle(logits: Tensor, row: Row) -> int:
    """One row, in words: sort, keep, add up."""
    temperature, top_k, top_p, min_p, uniform = row
    top_p, min_p = float(torch.tensor(top_p)), float(torch.tensor(min_p))
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax((logits - logits.max()) / temperature, dim=-1).tolist()
    order = [i for i, p in enumerate(probabilities) if p > 0]
    if (0 < top_k < len(probabilities)) or top_p < 1 or min_p > 0:
        order.sort(key=lambda i: (-probabilities[i], i))
        order = order[: int(top_k) or None]
        order = [i for i in order if probabilities[i] >= min_p * probabilities[order[0]]]
        kept, mass, total = [], 0.0, math.fsum(probabilities[i] for i in order)
        for i in order:
            if top_p < 1 and mass >= top_p * total:
                break
            kept.append(i)
            mass += probabilities[i]
        order = kept
    target = uniform * math.fsum(probabilities[i] for i in order)
    reached = 0.0
    for i in order:
        reached += probabilities[i]
        if reached > target:
            return i
    return order[-1]


def random_rows(count: int, seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    choices: list[tuple[float, ...]] = [
        (0.0, 0.6, 1.0, 2.0),
        (0, 0, 1, 5, 50, 300, 5000),
        (1.0, 1.0, 0.95, 0.5),
        (0, 0, 0.05),
    ]

    def pick(options: tuple[float, ...]) -> float:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    uniforms = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return [
        (pick(choices[0]), int(pick(choices[1])), pick(choices[2]), pick(choices[3]), u) for u in uniforms
    ]


@pytest.mark.parametrize(("vocabulary", "scale"), [(2, 1.0), (300, 3.0), (6000, 0.3), (6000, 4.0)])
def test_rows_get_the_token_of_the_oracle(vocabulary: int, scale: float) -> None:
    rows = random_rows(48, seed=vocabulary)
    logits = torch.randn(len(rows), vocabulary, generator=torch.Generator().manual_seed(1)) * scale
    logits[::3] = logits[::3].round()  # many ties
    logits[::5, ::2] = -torch.inf

    assert draw(logits, rows) == [oracle(logits[i], row) for i, row in enumerate(rows)]


def test_a_row_gets_the_same_token_alone_and_among_others() -> None:
    rows = random_rows(40, seed=2)
    logits = torch.randn(len(rows), 49152, generator=torch.Generator().manual_seed(3))

    together = draw(logits, rows)
    backwards = draw(logits.flip(0), rows[::-1])[::-1]
    alone = [draw(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]

    assert together == backwards == alone


def test_equal_logits_are_taken_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(4, 1000)

    assert draw(logits, [(1.0, 4, 1.0, 0.0, u) for u in (0.0, 0.25, 0.5, ALMOST_ONE)]) == [0, 1, 2, 3]
    assert draw(logits, [(0.0, 0, 1.0, 0.0, 0.9)] * 4) == [0, 0, 0, 0]


def test_equal_probabilities_may_exceed_the_candidates() -> None:
    logits = torch.zeros(1, 10000)

    assert draw(logits, [(1.0, 0, 0.5, 0.0, 0.5)]) == [2500]
    assert draw(logits, [(1.0, 7000, 1.0, 0.0, ALMOST_ONE)]) == [6999]


def test_forbidden_tokens_are_never_drawn_not_even_at_the_ends() -> None:
    logits = torch.full((6, 700), -torch.inf)
    logits[:, [300, 301]] = 1.0
    unlimited = [(1.0, 0, 1.0, 0.0, u) for u in (0.0, 0.5, ALMOST_ONE)]
    limited = [(1.0, 600, 0.9999, 0.0, u) for u in (0.0, 0.5, ALMOST_ONE)]

    assert draw(logits, unlimited + limited) == [300, 301, 301] * 2


def test_top_p_keeps_the_token_that_crosses_it_and_always_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(3, 1)

    assert draw(logits, [(1.0, 0, p, 0.0, ALMOST_ONE) for p in (0.51, 0.49, 1e-9)]) == [1, 0, 0]


def test_top_p_stops_where_it_is_reached_exactly() -> None:
    assert draw(torch.zeros(1, 4), [(1.0, 0, 0.5, 0.0, ALMOST_ONE)]) == [1]


def test_a_share_that_rounds_up_to_everything_falls_in_the_last_token_that_has_mass() -> None:
    index, _ = _invert(
        torch.tensor([[0.5, 0.25, 0.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )

    assert index.tolist() == [1]


def test_min_p_is_relative_to_the_likeliest_and_applied_before_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(2, 1)

    assert draw(logits, [(1.0, 0, 1.0, 0.5, ALMOST_ONE), (1.0, 0, 0.6, 0.5, ALMOST_ONE)]) == [1, 0]


def test_unlimited_draws_follow_the_distribution() -> None:
    count = 4000
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log().repeat(count, 1)

    drawn = draw(logits, [(1.0, 0, 1.0, 0.0, (i + 0.5) / count) for i in range(count)])

    assert [drawn.count(token) for token in range(4)] == [1600, 400, 1200, 800]


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    logits = torch.tensor([[1.0, 90.0, 89.0, -90.0]]).repeat(2, 1)

    assert draw(logits, [(1e-45, 0, 1.0, 0.0, 0.99), (1e-30, 3, 0.9, 0.0, 0.99)]) == [1, 1]


def test_no_rows_give_no_tokens() -> None:
    assert draw(torch.empty(0, 320), []) == []
