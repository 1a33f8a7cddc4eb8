"""The work that every engine is given: prompts as token ids, from fixed seeds.

Owns the prompts and their lengths; knows no engine and no clock. Nothing but the standard library is imported,
because this file runs in the environment of every engine. The ids are plain tokens of SmolLM2's vocabulary of
49,152; the models of other shapes have the same tokenizer.
"""

import math
import random

LOWEST_ID, END_ID = 100, 49_000
SHARED_TOKENS = 1024

# "What is the capital of France?" through SmolLM2's chat template, and how a right answer begins.
# fmt: off
CAPITAL = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
    198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
]
# fmt: on
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30]  # "The capital of France is Paris."


def token_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(LOWEST_ID, END_ID) for _ in range(count)]


def offline(count: int = 64) -> list[list[int]]:
    """Prompts of 32 to 512 tokens, log-uniform. A smaller count is another set, not the first of the larger."""
    rng = random.Random(1)
    low, high = math.log(32), math.log(512)
    lengths = [round(math.exp(rng.uniform(low, high))) for _ in range(count)]
    return [token_ids(rng, length) for length in lengths]


def batch(count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of one length that no other seed shares, so that no prefix cache helps."""
    rng = random.Random(seed * 1_000_003 + count * 101 + length)
    return [token_ids(rng, length) for _ in range(count)]


def shared() -> list[list[int]]:
    """16 prompts of 1,056 tokens with the first 1,024 in common."""
    rng = random.Random(7)
    prefix = token_ids(rng, SHARED_TOKENS)
    return [prefix + token_ids(rng, 32) for _ in range(16)]


def shared_again() -> list[list[int]]:
    """The prompts of `shared` with their own tokens in reverse: only the prefix may be warm."""
    return [prompt[:SHARED_TOKENS] + prompt[SHARED_TOKENS:][::-1] for prompt in shared()]


def served(count: int, rate: float) -> list[list[int]]:
    """Prompts of 32 to 512 tokens, log-uniform, behind a token that differs from rate to rate."""
    rng = random.Random(5)
    lengths = [round(2 ** rng.uniform(5, 9)) for _ in range(count)]
    # Without a first token of its own a second rate would find the prompts of the first in the prefix cache.
    return [[1000 + int(rate * 10), *token_ids(rng, length)] for length in lengths]


def arrivals(count: int, rate: float) -> list[float]:
    """Seconds from the start at which requests arrive: a Poisson process of `rate` requests a second."""
    rng, at, times = random.Random(11), 0.0, list[float]()
    for _ in range(count):
        at += rng.expovariate(rate)
        times.append(at)
    return times
