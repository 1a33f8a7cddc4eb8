"""The static check of a plugin: what it uses and overrides, against a version of the contracts. Runs none of it."""

from pathlib import Path

from core.contracts.changelog import changes_since
from core.contracts.versions import CONTRACT_OF, VERSIONS, Version, text
from core.errors import ConfigError
from core.plugin_kit.classes import (
    STATING,
    Stated,
    check_changes,
    check_class,
    check_statement,
    statements,
)
from core.plugin_kit.findings import Finding, Report
from core.plugin_kit.imports import check_imports, used_contracts
from core.plugin_kit.lineage import Classes, Lineage, value_of
from core.plugin_kit.modules import Modules
from core.plugin_kit.reading import read
from core.plugin_kit.uses import Versions, check_uses
from core.plugin_kit.versions import existing, stated_problem, versions_against


def check(path: Path, against: str | None = None) -> Report:
    """Read every Python file at or below `path` and say what would break, and what nobody promised.

    against  a contract version, "1.0"; None: those that this core keeps

    Raises ConfigError when there is nothing to read, or no such version.
    """
    asked = versions_against(against)
    sources, findings = read(path)
    modules = Modules(sources)
    used = used_contracts(modules)
    if against is not None and used and all(asked[each] == VERSIONS[each] for each in used):
        _refuse_unless_current(against, used)
    classes = Classes(modules)
    said = list(statements(modules, classes))
    versions = Versions(against=asked, stated=_stated(said, asked))
    for each in said:
        findings += check_statement(each, asked)
    findings += _promises(classes, versions)
    for source, nodes in modules.everything:
        findings += check_imports(source, nodes, modules, versions.against, versions.stated)
        findings += check_uses(source.path, nodes, modules, versions)
    return Report(
        files=len(sources) + sum(finding.rule == "unreadable" for finding in findings),
        against={contract: version for contract, version in asked.items() if contract in used},
        findings=tuple(sorted(set(findings))),
    )


def _refuse_unless_current(against: str, used: set[str]) -> None:
    """A version of another contract than those that the plugin uses compares nothing."""
    if against not in {text(VERSIONS[each]) for each in used}:
        raise ConfigError(
            f"version {against!r} is none of a contract that this plugin uses; {existing(sorted(used))}",
            setting="against",
        )


def _stated(said: list[Stated], asked: dict[str, Version]) -> dict[str, Version]:
    """Of each contract the oldest version that is stated and taken."""
    oldest: dict[str, Version] = {}
    for each in said:
        match each.value:
            case (int(major), int(minor)) if not stated_problem(
                each.contract, each.value, asked[each.contract]
            ):
                oldest[each.contract] = min(oldest.get(each.contract, (major, minor)), (major, minor))
            case _:
                pass
    return oldest


def _promises(classes: Classes, versions: Versions) -> list[Finding]:
    findings: list[Finding] = []
    for each, lineage in classes.promising():
        contract = CONTRACT_OF[lineage.promise.partition(".")[0]]
        kept, written = versions.against[contract], _written(lineage, contract, versions)
        findings += check_class(each, lineage, written, finished=classes.is_finished(each))
        later = [change for change in changes_since(contract, written) if change.version <= kept]
        findings += check_changes(each, lineage, later, kept)
    return findings


def _written(lineage: Lineage, contract: str, versions: Versions) -> Version:
    """The version that a class was written for: its own, else that of the plugin, else the one asked for."""
    asked, plugins = versions.of(contract)
    own = value_of(lineage.classes, "contract") if lineage.promise in STATING else None
    match own[2] if own else None:
        case (int(major), int(minor)) if not stated_problem(contract, (major, minor), asked):
            return major, minor
        case _:
            return plugins
