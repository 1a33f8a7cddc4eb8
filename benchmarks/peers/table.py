"""Tables in Markdown of what `run.py` wrote: medians, their range, and this engine against the best peer.

    python table.py results.jsonl [MORE.jsonl ...]

A cell is a median, with the least and the greatest of several rounds in brackets. "core is better by" is a ratio of
medians, written so that more than 1 is in favour of this project in every column (times are inverted), and in brackets
the least and the greatest of the ratios within one round. Where a target names a peer that is not the best one, both
ratios are shown.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

OURS = "core"
BEST = "the best"

Line = dict[str, Any]
Values = dict[int, float]  # by round; several of one round are their median


@dataclass(frozen=True)
class Column:
    """A figure: its key in a line, its title, and whether more is better. `judged` columns are compared."""

    key: str
    title: str
    more_is_better: bool
    decimals: int = 0
    judged: bool = True


ENGINE_COLUMNS = (
    Column("offline_out_tok_s", "offline, output tok/s", True),
    Column("ttft128_ms", "TTFT, ms", False, 1),
    Column("tpot1_ms", "TPOT, ms", False, 2),
    Column("decode_b4_tok_s", "decode 4, tok/s", True),
    Column("decode_b16_tok_s", "decode 16, tok/s", True),
    Column("decode_b32_tok_s", "decode 32, tok/s", True),
    Column("prefill2048_tok_s", "prefill, tok/s", True),
    Column("shared_cold_s", "shared cold, s", False, 2),
    Column("shared_warm_s", "shared warm, s", False, 2),
    Column("load_s", "load, s", False, 1, judged=False),
    Column("peak_rss_mb", "peak RSS, MB", False, judged=False),
)
SERVED_COLUMNS = (
    Column("out_tok_s", "output tok/s", True),
    Column("ttft_p50_ms", "TTFT p50, ms", False),
    Column("ttft_p99_ms", "TTFT p99, ms", False),
    Column("tpot_p50_ms", "TPOT p50, ms", False, 1),
    Column("tpot_p99_ms", "TPOT p99, ms", False, 1),
    Column("peak_rss_mb", "peak RSS of all processes, MB", False, judged=False),
)
COLD_COLUMNS = (Column("cold_start_s", "start to first token, s", False, 2),)

# What this project holds itself to, as (ratio, over whom). A time of at most 0.8 x another's is a ratio of 1 / 0.8.
SMOLLM2 = "SmolLM2-135M-Instruct"
_DECODE = ("decode_b4_tok_s", "decode_b16_tok_s", "decode_b32_tok_s")
TARGETS: dict[tuple[str, str], tuple[float, str]] = {
    ("bf16", "offline_out_tok_s"): (1.3, "vllm"),
    ("bf16", "tpot1_ms"): (1.0, "llama_cpp"),
    **{("bf16", key): (1.2, BEST) for key in _DECODE},
    ("bf16", "prefill2048_tok_s"): (1.2, "openvino"),
    ("bf16", "shared_cold_s"): (1 / 0.8, "vllm"),
    ("bf16", "shared_warm_s"): (1 / 0.8, "vllm"),
    ("bf16", "out_tok_s"): (1.2, "vllm"),
    ("bf16", "ttft_p99_ms"): (1.0, BEST),
    ("bf16", "tpot_p50_ms"): (1.0, BEST),
    ("bf16", "cold_start_s"): (1.0, "openvino"),
    ("int8", "offline_out_tok_s"): (1.3, "openvino"),
    ("int8", "tpot1_ms"): (1 / 0.9, "llama_cpp"),
    **{("int8", key): (1.3, "openvino") for key in _DECODE},
    ("int8", "prefill2048_tok_s"): (1.5, "openvino"),
    ("int4", "offline_out_tok_s"): (1.2, "openvino"),
    ("int4", "tpot1_ms"): (1 / 0.9, "llama_cpp"),
    **{("int4", key): (1.2, "openvino") for key in _DECODE},
    ("int4", "prefill2048_tok_s"): (1.2, "openvino"),
}
OTHER_MODELS = (1.05, BEST)  # every column of the engines in every mode, for every other model


def target(model: str, mode: str, column: Column) -> tuple[float, str] | None:
    if model == SMOLLM2:
        return TARGETS.get((mode, column.key))
    return OTHER_MODELS if column in ENGINE_COLUMNS and mode != "f32" else None


def values(lines: list[Line], key: str) -> Values:
    by_round: dict[int, list[float]] = {}
    for line in lines:
        if line.get(key) is not None:
            by_round.setdefault(line["round"], []).append(line[key])
    return {number: median(found) for number, found in by_round.items()}


def cell(found: Values, decimals: int) -> str:
    if not found:
        return "–"
    low, middle, high = min(found.values()), median(found.values()), max(found.values())
    text = f"{middle:,.{decimals}f}"
    return text if len(found) == 1 else f"{text} [{low:,.{decimals}f}–{high:,.{decimals}f}]"


def ratio(mine: float, other: float, more_is_better: bool) -> float:
    return mine / other if more_is_better else other / mine


def against(mine: Values, other: Values, more_is_better: bool) -> tuple[float, str]:
    """The ratio of medians, and as text with the range of the ratios within a round."""
    middle = ratio(median(mine.values()), median(other.values()), more_is_better)
    each = [ratio(mine[number], other[number], more_is_better) for number in mine if number in other]
    spread = f" [{min(each):.2f}–{max(each):.2f}]" if len(each) > 1 else ""
    return middle, f"{middle:.2f}{spread}"


def verdict(found: dict[str, Values], column: Column, asked: tuple[float, str] | None) -> list[str]:
    """Two cells: how much better than the best peer, and what was asked for."""
    mine = found.get(OURS) or {}
    peers = {name: there for name, there in found.items() if name != OURS and there}
    if not column.judged or not mine or not peers:
        return ["" if not column.judged else "–", "" if asked is None or not column.judged else "–"]
    ratios = {name: against(mine, there, column.more_is_better) for name, there in peers.items()}
    best = min(ratios, key=lambda name: ratios[name][0])
    first = f"{ratios[best][1]} × {best}"
    if asked is None:
        return [first, ""]
    least, whom = asked[0], best if asked[1] == BEST else asked[1]
    if whom not in ratios:
        return [first, f"{least:.2f} × {whom}: not measured"]
    met = "yes" if ratios[whom][0] >= least - 1e-9 else "**no**"
    got = "" if whom == best else f" ({ratios[whom][1]})"
    return [first, f"{least:.2f} × {whom}{got}: {met}"]


def table(title: str, lines: list[Line], columns: tuple[Column, ...]) -> list[str]:
    """A table with a row for each column that was measured, and a column for each engine."""
    names = sorted(dict.fromkeys(line["engine"] for line in lines), key=lambda name: name != OURS)
    counts = {name: len({line["round"] for line in lines if line["engine"] == name}) for name in names}
    head = ["", *(f"{name} (n={counts[name]})" for name in names), f"{OURS} is better by", "target"]
    rows = [head, ["---"] * len(head)]
    for column in columns:
        found = {
            name: values([line for line in lines if line["engine"] == name], column.key) for name in names
        }
        if any(found.values()):
            asked = target(lines[0]["model"], lines[0]["mode"], column)
            cells = [cell(found[name], column.decimals) for name in names]
            rows.append([column.title, *cells, *verdict(found, column, asked)])
    return [f"### {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def remarks(lines: list[Line]) -> list[str]:
    """What a reader must know before the tables: the memory, failures, differences in work."""
    speeds = [line["best_gb_s"] for line in lines if line["kind"] == "bandwidth"]
    said: list[str] = []
    if speeds:
        said = [
            f"Memory was read at {median(speeds):.1f} GB/s [{min(speeds):.1f}–{max(speeds):.1f}], "
            f"{len(speeds)} readings.",
            "",
        ]
    for line in lines:
        where = " ".join(str(line[key]) for key in ("engine", "mode", "model", "round") if key in line)
        if line["kind"] == "failure":
            said.append(f"- **failed**: {where}: {' '.join(line['error'].split())}")
        said += [f"- **{key}**: {where}: {line[key]}" for key in line if key.endswith("_error")]
        if line.get("failed"):
            said.append(f"- **{line['failed']} requests failed**: {where}: {line.get('error')}")
        if line.get("answer_ok") is False:
            said.append(f"- the known answer differs: {where}")
    return [*said, ""] if said and said[-1] else said


def report(lines: list[Line]) -> str:
    """All tables. Lines that differ in model, mode, work or rate never share one."""
    out = remarks(lines)
    groups: dict[tuple[str, tuple[Column, ...]], list[Line]] = {}
    for line in lines:
        name = f"{line['model']}, {line.get('mode')}"
        if line["kind"] == "engine":
            work = f"{line['offline_requests']} offline requests, {line['repeats']} repeats"
            groups.setdefault((f"{name} ({work})", ENGINE_COLUMNS), []).append(line)
        elif line["kind"] == "served":
            title = f"{name}, served at {line['rate']:g} requests/s ({line['requests']} requests)"
            groups.setdefault((title, SERVED_COLUMNS), []).append(line)
        elif line["kind"] == "cold":
            groups.setdefault((f"{name}, cold start", COLD_COLUMNS), []).append(line)
    for (title, columns), members in groups.items():
        out += table(title, members, columns)
    return "\n".join(out).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="files of JSON lines")
    given = parser.parse_args()
    text = "".join(path.read_text() for path in given.results)
    print(report([json.loads(line) for line in text.splitlines() if line.strip()]), end="")


if __name__ == "__main__":
    main()
