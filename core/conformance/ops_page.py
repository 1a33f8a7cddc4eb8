"""Writes docs/ops.md: every declared kernel, from its declaration alone."""

import inspect
from collections.abc import Iterable, Iterator, Sequence

from core.config import format_bytes
from core.conformance.bench import FULL, STEPS, Shapes, bench_cases
from core.contracts.kernels import Cost, Kernel
from core.execution.dispatch import signature_of
from core.reference import KERNELS

_DTYPE = "bfloat16"

_HEAD = f"""# Kernels

What models are built from. Each kernel is declared once, beside its reference in `core/reference`: what it computes,
inputs to try it on, how close a result must be, and what a call costs at least. Dispatch, `llm conformance` and this
page follow from the declarations. A platform brings its own version of as many as it likes, under the same signature;
the reference serves the rest. [Writing a platform](writing-a-platform.md) says how, and how to refuse what a version
cannot do.

- A *prepared* kernel takes weights once, when a model is loaded, and returns the function that is called in every step,
  so that a platform owns the layout of its weights.
- A *composed* kernel is made of finer ones unless a platform has a version of the whole.
- Weights are tensors, or stored bytes in a format among `weight_formats` in the platform's manifest; see
  [quantization.md](quantization.md).

```sh
llm conformance --platform NAME --level ops
llm conformance --platform NAME --level performance
```

The first tries every version on every case, against the reference, and once more with quantised weights. The second
measures it beside what the device's memory and arithmetic can do: its share of the nearer ceiling says what is left to
gain. The ceiling of arithmetic is torch's product in the dtype, or in float32 where that is faster. More than all of
it means that a cache has helped, or that a quantised product computes in fewer bits than the dtype has. Attention is a
contract of its own, with a level of its own.

## Where the time goes

Flops per byte say what bounds a kernel. A device that computes a hundred in the time of a byte waits for its memory
wherever there are fewer, and for its arithmetic wherever there are more. These are of a model in {_DTYPE}, of hidden
size {FULL.hidden:,}, intermediate size {FULL.intermediate:,} and {FULL.vocabulary:,} tokens, whose sequences have
{FULL.context:,} tokens cached when they decode.
"""

_COSTS = """\
A cost is a lower bound, whoever computes: bytes that must be read and written, each once, and flops, where a
multiplication and the addition to its sum are 2. What a fused version keeps to itself is not among the bytes, so that a
composed kernel moves fewer than its parts do. The difference is what there is to gain by fusing it.
"""


def ops_page() -> str:
    """The whole page, Markdown."""
    return "\n".join((_HEAD, _overview(), _COSTS, *(_section(kernel) for kernel in KERNELS.values())))


def _overview() -> str:
    return table(
        ("kernel", "computes", *(f"flops per byte, {step.name}" for step in STEPS)),
        ((f"[`{name}`](#{name})", kernel.summary, *_intensities(kernel)) for name, kernel in KERNELS.items()),
    )


def _intensities(kernel: Kernel) -> Iterator[str]:
    costs = dict(_measured(kernel))
    for step in STEPS:
        yield _intensity(costs[step.name]) if step.name in costs else "–"


def _section(kernel: Kernel) -> str:
    signature = f"{kernel.name}({', '.join(signature_of(kernel))})"
    source = f"{kernel.reference.__module__.replace('.', '/')}.py"
    return "\n".join(
        (
            f"## {kernel.name}\n",
            f"`{signature}`: {kernel.summary}. Reference: [{source}](../{source}).\n",
            f"```text\n{inspect.getdoc(kernel.reference)}\n```\n",
            table(("", ""), _facts(kernel)),
            table(("a call on", "bytes", "flops", "flops per byte"), _costs(kernel)),
        )
    )


def _facts(kernel: Kernel) -> Iterator[tuple[str, str]]:
    if kernel.prepared:
        yield "prepared", "takes weights once and returns the function of a step"
    if kernel.composed:
        yield "composed of", ", ".join(f"[`{name}`](#{name})" for name in kernel.composed)
    if kernel.given_away:
        yield "may overwrite", f"the first {kernel.given_away} arguments of a step, and return them"
    yield "tolerance", _tolerance(kernel)
    yield "tried on", _listed([case.name for case in kernel.cases(_DTYPE, 0)])
    yield "cost", " ".join((inspect.getdoc(kernel.cost) or "").split())


def _tolerance(kernel: Kernel) -> str:
    bounds = {dtype: bound.absolute for dtype, bound in kernel.tolerance.items()}
    if not any(bounds.values()):
        return "none: results are the same"
    listed = ", ".join(f"{bound:.2g} in {dtype}" for dtype, bound in bounds.items())
    return f"absolute and relative, {listed}"


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} cases: {'; '.join(names)}"


def _costs(kernel: Kernel) -> Iterator[tuple[str, ...]]:
    for name, cost in _measured(kernel):
        yield name, format_bytes(cost.bytes_moved), _count(cost.flops), _intensity(cost)


def _measured(kernel: Kernel) -> Iterator[tuple[str, Cost]]:
    for case in bench_cases(kernel.name, FULL, Shapes(_DTYPE, 0)):
        yield case.name, kernel.cost(case)


def _count(flops: int) -> str:
    """12,345,678 -> "12.3 million"."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if flops >= size:
            return f"{flops / size:,.1f} {word}"
    return f"{flops:,}"


def _intensity(cost: Cost) -> str:
    return f"{cost.flops / cost.bytes_moved:,.1f}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
