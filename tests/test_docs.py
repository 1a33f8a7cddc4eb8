"""The documentation says what is so: generated parts are current, commands and names exist, links lead somewhere."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.main import get_command

import core
from cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEST_COMMAND = 'pip install -e ".[test]" && pytest'

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:core|platforms|plugins|models|server|cli|tests|docs)/[\w./]*)`")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in _BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# What is generated is current


def test_generated_parts_are_what_the_code_says_now(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    pages: dict[Path, str] = generator.pages()
    assert len(pages) >= 5
    stale = [named(path) for path, text in pages.items() if path.read_text() != text]
    assert stale == [], "run  python docs/generate.py"


def test_every_generated_part_is_used_somewhere(generator: ModuleType) -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in generator.PARTS if f"<!-- generated: {name} -->" not in text] == []


def test_a_part_that_has_changed_is_noticed(generator: ModuleType) -> None:
    text = README.read_text().replace("`simulated`", "`imagined`")
    assert text != generator.filled(text, generator.first_party())


def test_a_platform_of_unknown_status_is_not_documented(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(generator.STATUS, "cpu")
    with pytest.raises(KeyError, match="cpu"):
        generator.platforms_long(generator.first_party())


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [path for path in (ROOT / "core").rglob("*.py") if path.name != "__init__.py"]
    assert [named(path) for path in modules if f"`{named(path)}`" not in text] == []


# What is promised exists


def commands(page: Path) -> Iterator[list[str]]:
    """Every use of `llm` in a page, split into words: in shell blocks, and in the prose as `llm …`."""
    for block in blocks(page, "sh", ""):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                match = re.match(r"\s*(?:\$ )?(?:\w+=(?:\"[^\"]*\"|\S+) )*(llm .*)", part)
                if match:
                    yield shlex.split(match[1])
    for text in re.findall(r"`(?:\w+=\S+ )?(llm(?: [^`]*)?)`", prose(page)):
        yield shlex.split(text)


def problem(words: list[str]) -> str | None:
    """What the command line would not understand of these words."""
    command: Any = get_command(app)
    context = typer.Context(command, info_name="llm")
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        context = typer.Context(command, info_name=rest[0], parent=context)
        rest = rest[1:]
    if rest and not rest[0].startswith("-") and hasattr(command, "commands") and rest[0] != "COMMAND":
        return f"{words}: no command {rest[0]}"
    known = {name for p in command.get_params(context) for name in (*p.opts, *p.secondary_opts)}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"{words}: no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page: Path) -> None:
    assert [found for words in commands(page) if (found := problem(words))] == []


def test_the_check_of_commands_notices() -> None:
    assert problem(["llm", "generate", "Hello", "--max-tokens", "3"]) is None
    assert problem(["llm", "generat", "Hello"]) is not None
    assert problem(["llm", "bench", "latency", "--num-prompts", "3"]) is not None


def test_the_readme_shows_every_command() -> None:
    shown = {word for words in commands(README) for word in words[1:3]}
    assert set(get_command(app).commands) - shown == set()  # type: ignore[attr-defined]


def test_the_two_commands_are_these_and_ci_runs_the_second() -> None:
    shell = "\n".join(blocks(README, "sh"))
    assert '\npip install . && llm generate "The capital of France is"\n' in f"\n{shell}"
    assert f"\n{TEST_COMMAND}\n" in f"\n{shell}"
    ci = ROOT / ".ci" / "run"
    assert f"test_command='{TEST_COMMAND}'" in ci.read_text()
    assert subprocess.run(["bash", "-n", str(ci)], check=False).returncode == 0
    assert ci.stat().st_mode & 0o111


@cache
def python_blocks() -> list[tuple[str, ast.Module]]:
    return [(named(page), ast.parse(block)) for page in PAGES for block in blocks(page, "python")]


def test_examples_in_python_compile_and_import_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "toy_platform"))
    ours = {"core", "platforms", "plugins", "models", "server", "cli", "toy_platform"}
    seen = 0
    for page, tree in python_blocks():
        compile(tree, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ours:
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == [], page
                seen += 1
    assert seen > 5


def test_the_readmes_first_example_runs_as_it_stands(smollm2: Path, tmp_path: Path) -> None:
    example = blocks(README, "python")[0]
    assert "LLM(" in example
    result = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Hello, my name is" in result.stdout
    assert "Paris" in result.stdout


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for link in _LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    assert [path for path in _PATH.findall(prose(page)) if not (ROOT / path).exists()] == []


def test_dotted_names_of_core_exist() -> None:
    wrong: list[str] = []
    for page in PAGES:
        for name in re.findall(r"`(core(?:\.\w+)+)`", prose(page)):
            if name != "core.plugins" and not resolves(name):
                wrong.append(f"{named(page)}: {name}")
    assert wrong == []


def resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## [{core.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
