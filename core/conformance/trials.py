"""What happens to requests on the way to an answer, each as a function of a workbench that gives the problem, or "".

Raises NotSupported with the platform's own reason, and whatever the platform raised. Which of these are run, and under
which name, is the level's affair (`engine`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from core.conformance import traces
from core.conformance.driver import Answer, Session, Side, complete
from core.conformance.traces import Event
from core.conformance.workbench import NotSupported, Workbench, behind_likeliest, left_behind

EXACT = "float32"
BRIEF = 12
"""Tokens of an answer where there is little time, and where the cache is small."""

AGREEMENT = 0.9
"""Part of all places in which the likeliest token must be the reference's, in dtypes that round."""


def greedy(
    model: Callable[[Workbench], Path] = Workbench.model, *, together: bool = True, **settings: object
) -> Callable[[Workbench], str]:
    """All prompts, at once or one after the other, in an engine with these settings."""

    def run(bench: Workbench) -> str:
        folder = model(bench)
        with bench.ours.engine(folder, **settings) as engine:
            answers = complete(engine, bench.prompts, bench.greedy, together=together)
            return bench.compared(bench.expected(folder), answers) or left_behind(engine)

    return run


def tied(bench: Workbench) -> Path:
    """A model whose head is its embedding."""
    return bench.model(tie_word_embeddings=True)


def preempted(bench: Workbench) -> str:
    """More sequences than the cache holds to their ends."""
    folder, params = bench.model(), bench.greedy.with_(max_tokens=BRIEF)
    with bench.crowded(bench.ours, folder) as engine:
        answers = complete(engine, bench.crowd, params)
        preemptions = engine.statistics().num_preemptions
        bench.figures = {"preemptions": float(preemptions)}
        if not preemptions:
            blocks = engine.scheduler.cache.pools[0].usable
            return f"nobody was preempted, though {blocks} blocks are too few for {len(answers)} sequences"
        return bench.compared(bench.expected(folder, bench.crowd, BRIEF), answers) or left_behind(engine)


def aborted(bench: Workbench) -> str:
    """Every third request leaves in the middle; the others' answers are what they would have been."""
    folder = bench.model()
    gone = list(bench.prompts)[::3]
    with bench.ours.engine(folder) as engine:
        session = Session(engine)
        for name, prompt in bench.prompts.items():
            session.add(name, prompt, bench.greedy)
        for _ in range(4):
            session.step()
        session.abort(gone)
        session.finish()
        stayed = {name: session.answers[name, 0] for name in bench.prompts if name not in gone}
        return bench.compared(bench.expected(folder), stayed) or left_behind(engine)


def reused(bench: Workbench) -> str:
    """The longest prompt, again, and then one that begins like it."""
    folder, names = bench.model(), list(bench.prompts)[-2:]
    reused: list[int] = []
    with bench.ours.engine(folder) as engine:
        for name in (names[0], *names):
            answers = complete(engine, {name: bench.prompts[name]}, bench.greedy)
            reused.append(answers[name].num_cached)
            if problem := bench.compared(bench.expected(folder), answers):
                return f"{problem} ({reused[-1]} tokens of it were found in the cache)"
    bench.figures = {"reused_tokens": float(sum(reused))}
    if not all(reused[1:]):
        return f"of prompts that came before, {reused[1]} and {reused[2]} tokens were found in the cache"
    return ""


def forked(bench: Workbench) -> str:
    """Of one prompt a whole block is shared, of the other a part is copied, too."""
    folder, expected = bench.model(), bench.expected(bench.model())
    names = [f"of {bench.unit + 1} tokens", f"of {2 * bench.unit + 3} tokens"]
    with bench.ours.engine(folder) as engine:
        session = Session(engine)
        for name in names:
            session.add(name, bench.prompts[name], bench.greedy.with_(n=3))
        session.finish()
        for index in range(3):
            problem = bench.compared(expected, {name: session.answers[name, index] for name in names})
            if problem:
                return f"answer {index}: {problem}"
        return left_behind(engine)


def _sampled(bench: Workbench, *, backwards: bool = False) -> dict[str, list[int]]:
    names = list(bench.prompts)
    with bench.ours.engine(bench.model(), enable_prefix_caching=False) as engine:
        session = Session(engine)
        for name in reversed(names) if backwards else names:
            params = bench.greedy.with_(temperature=0.9, top_p=0.95, seed=100 + names.index(name))
            session.add(name, bench.prompts[name], params)
        session.finish()
    return {name: session.answers[name, 0].token_ids for name in names}


def seeded_again(bench: Workbench) -> str:
    """Sampled answers, in two engines."""
    first, second = _sampled(bench), _sampled(bench)
    return _first_difference(first, second, "the second time")


def seeded_backwards(bench: Workbench) -> str:
    """Sampled answers to prompts that come in one order, and in the other."""
    if bench.ours.dtype != EXACT:
        raise NotSupported(f"a sum in {bench.ours.dtype} may be rounded otherwise beside other rows")
    return _first_difference(_sampled(bench), _sampled(bench, backwards=True), "in the other order")


def cached_in_int8(bench: Workbench) -> str:
    """A cache of 8 bits: its answers are its own, and the same twice."""
    if "int8" not in bench.capabilities.kv_cache_dtypes:
        raise NotSupported("int8 is not among its kv_cache_dtypes")
    return _deterministic(bench, kv_cache_dtype="int8")


def quantized(name: str) -> Callable[[Workbench], str]:
    """Weights of this format: the answers are their own, and the same twice."""

    def run(bench: Workbench) -> str:
        if name not in bench.capabilities.weight_formats:
            raise NotSupported(f"{name} is not among its weight_formats")
        return _deterministic(bench, quantization=name)

    return run


def _deterministic(bench: Workbench, **settings: object) -> str:
    """Answers to the end, the same twice; by how many tokens they are those of the platform's own dtype."""
    runs: list[dict[str, Answer]] = []
    for given in (settings, settings, {}):
        with bench.ours.engine(bench.model(), **given) as engine:
            runs.append(complete(engine, bench.prompts, bench.greedy))
    for name, answer in runs[0].items():
        if answer.error or len(answer.token_ids) != bench.greedy.max_tokens:
            return f"the answer to the prompt {name} ended early: {answer.error or answer.finish_reason}"
    first, second, own = ({name: answer.token_ids for name, answer in run.items()} for run in runs)
    pairs = [pair for name in first for pair in zip(first[name], own[name], strict=False)]
    bench.figures = {"unquantized_tokens_share": sum(a == b for a, b in pairs) / len(pairs)}
    return _first_difference(first, second, "the second time")


def _first_difference(first: Mapping[str, list[int]], second: Mapping[str, list[int]], when: str) -> str:
    for name, tokens in first.items():
        if tokens != second[name]:
            return f"the answer to the prompt {name} is {second[name][:8]} … {when}, and was {tokens[:8]} …"
    return ""


def replayed(*, crowded: bool) -> Callable[[Workbench], str]:
    """A script's steps on the reference, and the same script's here."""

    def recorded(bench: Workbench, side: Side) -> traces.Trace:
        settings = {"max_num_batched_tokens": 2 * bench.unit, "prefill_chunk_size": bench.unit}
        folder = bench.model()
        opened = (
            bench.crowded(side, folder, **settings)
            if crowded
            else side.engine(folder, max_num_seqs=bench.num_seqs, **settings)
        )
        with opened as engine:
            return traces.record(engine, _script(bench))

    def run(bench: Workbench) -> str:
        right, found = recorded(bench, bench.reference), recorded(bench, bench.ours)
        bench.figures = {"steps": float(len(found.steps)), "preemptions": float(found.num_preemptions)}
        if right.num_blocks != found.num_blocks:
            raise NotSupported(
                f"its cache has {found.num_blocks} blocks where the reference's has {right.num_blocks}, so that their "
                "steps cannot be the same"
            )
        return traces.difference(right, found)

    return run


def _script(bench: Workbench) -> list[Event]:
    """Long prompts at once, shorter ones that begin like them one by one, and two that leave before they are done."""
    crowd = list(bench.crowd.values())
    late = [*(prompt[: bench.unit + i] for i, prompt in enumerate(crowd)), crowd[0][:3]]
    events = [
        Event(step=0, name=f"early {i}", prompt=tuple(prompt), num_tokens=BRIEF)
        for i, prompt in enumerate(crowd)
    ]
    events += [
        Event(step=2 + i, name=f"late {i}", prompt=tuple(prompt), num_tokens=4 + 3 * (i % 3))
        for i, prompt in enumerate(late)
    ]
    return [*events, Event(step=8, name=f"late {len(late) - 1}"), Event(step=9, name="early 1")]


def agreeing(bench: Workbench) -> str:
    """Each token of the reference's answers, asked for alone after those before it."""
    folder = bench.model()
    expected = bench.expected(folder)
    prompts = {
        f"{name} and {place} tokens": [*bench.prompts[name], *answer.token_ids[:place]]
        for name, answer in expected.items()
        for place in range(len(answer.token_ids))
    }
    with bench.ours.engine(folder) as engine:
        answers = iter(complete(engine, prompts, bench.greedy.with_(max_tokens=1)).items())
    agreeing = 0
    for answer in expected.values():
        for place, right in enumerate(answer.token_ids):
            asked, given = next(answers)
            if given.error or not given.token_ids:
                return f"the answer to the prompt {asked} ended early: {given.error or given.finish_reason}"
            agreeing += given.token_ids[0] == right
            if behind_likeliest(answer, place, given.token_ids[0]) > bench.margin:
                return f"after the prompt {asked} comes {given.token_ids[0]}, expected {right}"
    share = agreeing / len(prompts)
    bench.figures = {"agreement_share": share}
    if share < AGREEMENT:
        return f"the likeliest token is the reference's in {share:.0%} of {len(prompts)} places"
    return ""
