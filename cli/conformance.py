"""`llm conformance`: whether a platform does what the core counts on, level by level, and the file that says so."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failures import FAILED, CommandError, UsageError, file_errors, refused_values
from cli.options import takes
from cli.terminal import Status, write, write_json, write_table

if TYPE_CHECKING:
    from core.conformance import Options, Result
    from core.conformance.certificate import Certificate

SHOWN = 3
"""So many wrong checks are shown of each subject. All are in the certificate."""


_Levels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="<str>",
        help="Level to run: ops, attention, memory, communication, engine, server or performance; may be repeated. "
        "[default: the first five]",
        show_default=False,
    ),
]
_Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="<str>",
        help="Model dtype to try; may be repeated. [default: those of the device]",
        show_default=False,
    ),
]
_Only = Annotated[
    str, typer.Option(metavar="TEXT", help="Leave out checks whose name lacks this.", show_default=False)
]
_File = Annotated[
    Path | None, typer.Option(help="Write what was found, on which machine, to this JSON file.")
]
_Patience = Annotated[
    int,
    typer.Option(metavar="SECONDS", min=1, help="How long a level may report nothing before it is ended."),
]
_Signature = Annotated[str | None, typer.Option(metavar="TEXT", help="Who stands for the certificate.")]


@takes()
def conformance(
    platform: Annotated[str, typer.Option(help="Platform to try, or auto; see `llm platforms`.")],
    level: _Levels = None,
    dtype: _Dtypes = None,
    only: _Only = "",
    quick: Annotated[bool, typer.Option("--quick", help="The part that shows most in little time.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate instead of tables.")] = False,
    certificate: _File = None,
    sign_off: _Signature = None,
    patience: _Patience = 300,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
) -> None:
    """Try a platform against the reference. Leaves with 1 when anything is wrong.

    Every check has passed, is wrong, or is not supported, by the platform's own word. Slow levels are left out unless
    they are named. Levels run in a process of their own: what ends it, or hangs, ends one level.
    """
    from core.conformance import Options
    from core.conformance.levels import named

    with refused_values():
        levels = named(level or ())
        options = Options(dtypes=tuple(dtype) if dtype else None, quick=quick, only=only)
    _check_certificate(certificate, options, signed=sign_off is not None, json=json)
    found, results = _run(platform, levels, options, sign_off or "", patience, Status(quiet=quiet))
    if not results:
        raise CommandError(f"no check of {', '.join(levels)} has {only!r} in its name")
    if certificate is not None:
        _write_certificate(found, certificate)
    if json:
        write_json(found.as_dict(sealed=not options.partial))
    else:
        _report(found, results, options)
    if found.wrong:
        raise typer.Exit(FAILED)


def _check_certificate(path: Path | None, options: "Options", *, signed: bool, json: bool) -> None:
    """Before minutes are spent."""
    if signed and path is None and not json:
        raise UsageError("--sign-off signs a certificate; add --certificate FILE, or --json")
    if options.partial and (signed or path is not None):
        instead = "leave out --only and --dtype, or --certificate and --sign-off"
        raise UsageError(f"a certificate is of whole levels; {instead}")
    if path is not None and not path.parent.is_dir():
        raise CommandError(f"cannot write {path}: there is no folder {path.parent}")


def _write_certificate(certificate: "Certificate", path: Path) -> None:
    from core.conformance.certificate import write as write_file

    with file_errors(f"write {path}"):
        write_file(certificate, path)


def _run(
    name: str, levels: Sequence[str], options: "Options", sign_off: str, patience: int, status: Status
) -> "tuple[Certificate, list[Result]]":
    """Try a platform by its name. Every result is in the certificate, too."""
    from core.conformance.apart import Apart
    from core.conformance.certificate import certify
    from core.discovery import load_plugins

    plugins = load_plugins()
    platform, device = plugins.select_platform(name)
    found: dict[str, tuple[float, list[Result]]] = {}
    with Apart(platform.name, patience) as apart:
        for level in levels:
            status(f"{platform.name}: {level}")
            found[level] = _timed(apart.check(level, options), f"{platform.name}: {level}", status)
    status.clear()
    origin = next(each.distribution for each in plugins.platforms if each.name == platform.name)
    made = certify(platform, device, found, distribution=origin, quick=options.quick, signed_off_by=sign_off)
    return made, [result for _, results in found.values() for result in results]


def _timed(checks: "Iterable[Result]", level: str, status: Status) -> "tuple[float, list[Result]]":
    """One level: how many seconds it took, and what it found. A status line for each of its subjects."""
    subjects, counts, results = set[str](), Counter[str](), list["Result"]()
    started = time.perf_counter()
    for result in checks:
        where = f"{level}: {result.subject}"
        if result.subject not in subjects:
            status(where)
        subjects.add(result.subject)
        results.append(result)
        counts[result.status] += 1
        status.update(f"{where} ({', '.join(f'{count:,} {word}' for word, count in counts.items())})")
    return time.perf_counter() - started, results


def _report(certificate: "Certificate", results: "Sequence[Result]", options: "Options") -> None:
    """What is not supported, what is wrong, what was measured, and the table of it all."""
    from core.conformance.certificate import ROWS
    from core.conformance.figures import COLUMNS, figure_rows

    for lines in (_unsupported(results), _wrong(certificate.platform, results, options)):
        write("".join(f"{line}\n" for line in lines))
    if measured := figure_rows(results):
        write_table("Performance", COLUMNS, measured)
    write_table(f"Conformance of {certificate.platform} ({certificate.device})", ROWS, certificate.rows())
    verdict = f"{certificate.wrong:,} wrong" if certificate.wrong else "nothing wrong"
    write(f"{_checks(certificate.checks)}, {verdict}. The platform is {certificate.lines}.\n")


def _unsupported(results: "Sequence[Result]") -> Iterator[str]:
    """A line for each reason, and a last one that is empty."""
    reasons = Counter((result.level, result.unsupported) for result in results if result.unsupported)
    for (level, reason), count in reasons.items():
        yield f"not supported  {level}: {_checks(count)}: {reason}"
    yield from [""] if reasons else []


def _wrong(platform: str, results: "Sequence[Result]", options: "Options") -> Iterator[str]:
    """Of each check its name, what was found and what was expected, how to run it again, and an empty line."""
    from core.conformance.levels import command

    wrong: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.problem:
            wrong.setdefault((result.level, result.subject), []).append(result)
    for (level, subject), alike in wrong.items():
        for result in alike[:SHOWN]:
            yield f"wrong  {level}: {result}\n  {command(platform, result, options)}\n"
        if len(alike) > SHOWN:
            yield f"wrong  {level}: {subject}: {len(alike) - SHOWN:,} more; --json has them all\n"


def _checks(count: int) -> str:
    return f"{count:,} check{'' if count == 1 else 's'}"
