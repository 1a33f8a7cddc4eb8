"""The house rules of docs/architecture.md, held by machine."""

import ast
import importlib
import inspect
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import core
from core import hookspecs

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("core", "platforms", "plugins", "models", "server", "cli")
VENDOR_FREE = ("core", "models", "server", "plugins")

# Growth is to be seen when it happens: raise one of these in the commit that needs it.
LONGEST_FILE = 320  # never above 400
LONGEST_FUNCTION = 45  # never above 60
MEDIAN_FILE = 120
LONG_FUNCTION = 30  # nine functions in ten are no longer

VENDOR_WORDS = {
    "cuda", "hip", "rocm", "xpu", "npu", "hpu", "tpu", "mps", "gaudi", "habana", "ascend", "spyre", "nvidia",
    "amd", "intel", "rccl", "hccl",
}  # fmt: skip
# Stems of identifiers that no English word begins with: cudagraph, cudnn, rocblas.
VENDOR_STEMS = ("cuda", "cudnn", "cublas", "rocm", "rocblas", "nvidia", "gaudi", "nccl")
DEVICE_MODULES = frozenset(
    {"cuda", "xpu", "npu", "hpu", "mps", "mtia", "tpu", "cpu", "accelerator", "backends", "privateuseone"}
)
DEVICE_TYPES = DEVICE_MODULES | {"meta"}

UNSAFE_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
)
UNSAFE_BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
UNSAFE_CALLS = frozenset(
    {"torch.load", "torch.package", "torch.hub", "os.system", "os.popen", "numpy.load", "np.load"}
)
UNSAFE_METHODS = frozenset({"send_pyobj", "recv_pyobj", "broadcast_object_list", "all_gather_object"})
UNSAFE_KEYWORDS = frozenset({"allow_pickle", "trust_remote_code", "shell"})

# What users type is checked here; python -O drops asserts.
ASSERT_FREE = (
    "server",
    "cli",
    "plugins",
    "core/text",
    "core/weights",
    "core/config.py",
    "core/sampling_params.py",
)


def sources(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert found
    return found


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def findings(check: Callable[[str], Iterator[tuple[int, str]]], *places: str) -> list[str]:
    return [f"{where(p, line)} {what}" for p in sources(*places) for line, what in check(p.read_text())]


def run(*command: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False
    )


# Who imports whom


def lint_imports(cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache", cwd=cwd)


def test_packages_import_only_what_the_house_allows() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("core/config.py", "platforms.cpu"),
        ("platforms/cpu/platform.py", "platforms.simulated.options"),
        ("plugins/sources/hub.py", "models.llama"),
        ("models/llama.py", "server.settings"),
        ("server/app.py", "cli.app"),
        ("cli/app.py", "platforms.cpu"),
    ],
)
def test_the_import_rules_notice_a_forbidden_import(importer: str, imported: str, tmp_path: Path) -> None:
    for package in PRODUCT:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / importer).open("a") as file:
        file.write(f"\nimport {imported}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert imported.partition(".")[0] in result.stdout


WITHOUT_TORCH = {
    "core": "import core; core.EngineConfig, core.SamplingParams, core.LLM, core.hookimpl",
    "plugins": "from core.discovery import load_plugins; assert load_plugins().platforms",
    "contracts": "import core.contracts.runner, core.contracts.source, core.contracts.communication",
    "command line": "import cli.main, cli.app",
    "server": "import server.run, core.engine.async_engine",
}


@pytest.mark.parametrize("statement", WITHOUT_TORCH.values(), ids=WITHOUT_TORCH)
def test_torch_is_not_loaded_by(statement: str) -> None:
    heavy = "sorted({'torch', 'transformers'} & set(sys.modules))"
    result = run("-c", f"import sys; {statement}; print({heavy})")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_every_plugin_module_loads_without_torch() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources("platforms", "plugins", "models")}
    modules = ", ".join(".".join(folder.parts) for folder in sorted(folders))
    result = run("-c", f"import sys, {modules}; print('torch' in sys.modules)")
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_what_counts_blocks_never_touches_a_tensor() -> None:
    def tensors(text: str) -> Iterator[tuple[int, str]]:
        for line, name in imported_modules(ast.parse(text)):
            if name.partition(".")[0] in {"torch", "numpy"}:
                yield line, f"imports {name}"

    assert findings(tensors, "core/engine") == []


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


# No vendor


def vendor_words(text: str) -> Iterator[tuple[int, str]]:
    """Words and parts of identifiers (is_cuda, NpuWorker, HIPGraph), in code, strings and comments alike."""
    for number, line in enumerate(text.splitlines(), 1):
        for word in re.findall(r"[A-Za-z]+", line):
            parts = [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)]
            if VENDOR_WORDS & {word.lower(), *parts} or word.lower().startswith(VENDOR_STEMS):
                yield number, word


def device_modules(text: str) -> Iterator[tuple[int, str]]:
    """torch.<device>, and decisions taken by a device's type."""
    tree = ast.parse(text)
    for line, name in imported_modules(tree):
        parts = name.split(".")
        if parts[0] == "torch" and len(parts) > 1 and parts[1] in DEVICE_MODULES:
            yield line, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in DEVICE_MODULES:
                yield node.lineno, f"torch.{node.attr}"
        elif isinstance(node, ast.Compare | ast.MatchValue):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and part.value in DEVICE_TYPES:
                    yield node.lineno, f"decides by {part.value!r}"


def test_no_vendor_is_named_outside_platforms() -> None:
    assert findings(vendor_words, *VENDOR_FREE) == []


def test_no_device_is_asked_for_by_its_torch_module_outside_platforms() -> None:
    assert findings(device_modules, *VENDOR_FREE) == []


@pytest.mark.parametrize(
    "line",
    [
        "x.is_cuda",
        "class NpuWorker: ...",
        "HIPGraph()",
        "# only on ROCm",
        "d = 'xpu:0'",
        "cudagraphs = 1",
        "TPU_NAME",
    ],
)
def test_the_vendor_rule_notices(line: str) -> None:
    assert list(vendor_words(line))


@pytest.mark.parametrize("line", ["intelligence", "a relationship", "ascending order", "input_npy", "camden"])
def test_the_vendor_rule_lets_english_be(line: str) -> None:
    assert list(vendor_words(line)) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        "import torch.xpu",
        "from torch import cuda",
        "torch.backends.mkldnn",
        "if x.device.type == 'cpu': ...",
        "if kind in ('cpu', 'mtia'): ...",
    ],
)
def test_the_device_rule_notices(line: str) -> None:
    assert list(device_modules(line))


# No code from data


def unsafe(text: str) -> Iterator[tuple[int, str]]:
    """Whatever runs code that came as data."""
    tree = ast.parse(text)
    for line, name in imported_modules(tree):
        if name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in UNSAFE_BUILTINS:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            if node.attr in UNSAFE_METHODS or ast.unparse(node) in UNSAFE_CALLS:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS and not is_false(node.value):
            yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_in_the_product_runs_code_that_came_as_data() -> None:
    assert findings(unsafe, *PRODUCT) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "import marshal as m",
        "eval(text)",
        "run = exec",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "socket.recv_pyobj()",
        "AutoModel.from_pretrained(name, trust_remote_code=remote)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_rule_against_code_from_data_notices(line: str) -> None:
    assert list(unsafe(line))


def test_nothing_that_a_user_typed_is_checked_by_assert() -> None:
    def asserts(text: str) -> Iterator[tuple[int, str]]:
        yield from ((n.lineno, "assert") for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert))

    assert findings(asserts, *ASSERT_FREE) == []


# Size


def ninetieth(lengths: list[int]) -> int:
    return sorted(lengths)[len(lengths) * 9 // 10]


def test_files_and_functions_stay_short() -> None:
    files, functions = dict[str, int](), dict[str, int]()
    for path in sources(*PRODUCT):
        text = path.read_text()
        files[where(path, 1)] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{where(path, node.lineno)} {node.name}"] = (
                    (node.end_lineno or 0) - node.lineno + 1
                )
    for name, lengths in (("files", files), ("functions", functions)):
        values, longest = list(lengths.values()), max(lengths, key=lambda key: lengths[key])
        print(
            f"{len(values)} {name}: median {statistics.median(values):g} lines, 90th percentile "
            f"{ninetieth(values)}, longest {lengths[longest]} ({longest})"
        )
    assert {name: n for name, n in files.items() if n > LONGEST_FILE} == {}
    assert {name: n for name, n in functions.items() if n > LONGEST_FUNCTION} == {}
    assert statistics.median(files.values()) <= MEDIAN_FILE
    assert ninetieth(list(functions.values())) <= LONG_FUNCTION


# What is public is documented


def core_modules() -> Iterator[tuple[Path, ModuleType]]:
    for path in sources("core"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield path, importlib.import_module(name)


def public_definitions(path: Path) -> Iterator[tuple[ast.ClassDef | None, Any]]:
    """(class or None, definition) of public classes, functions, and methods of public classes."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or node.name.startswith("_"):
            continue
        yield None, node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith(
                    "_"
                ):
                    yield node, member


def inherited_docstring(module: ModuleType, owner: ast.ClassDef | None, name: str) -> str | None:
    """What the base class, usually a contract, says of a method."""
    if owner is None:
        return None
    bases: tuple[type, ...] = getattr(module, owner.name).__mro__[1:]
    documented = (vars(base)[name].__doc__ for base in bases if name in vars(base))
    return next((text for text in documented if text), None)


def test_every_module_of_core_says_what_it_owns() -> None:
    assert [where(path, 1) for path, module in core_modules() if not (module.__doc__ or "").strip()] == []


def test_every_member_of_a_contract_is_documented() -> None:
    missing = [
        f"{where(path, node.lineno)} {node.name}"
        for path in sources("core/contracts", "core/hookspecs.py")
        for _, node in public_definitions(path)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_what_is_public_in_core_and_not_obvious_is_documented() -> None:
    """A name and up to three lines may speak for themselves; an override is documented by its contract."""
    missing: list[str] = []
    for path, module in core_modules():
        for owner, node in public_definitions(path):
            short = (node.end_lineno or 0) - node.lineno < 3
            if short or ast.get_docstring(node) or inherited_docstring(module, owner, node.name):
                continue
            missing.append(f"{where(path, node.lineno)} {node.name}")
    assert missing == []


def test_every_hook_is_documented_with_its_exact_arguments() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    hooks = [f for name, f in vars(hookspecs).items() if name.startswith("core_") and inspect.isfunction(f)]
    assert len(hooks) >= 4
    for hook in hooks:
        signature = inspect.signature(hook)
        arguments = ", ".join(str(parameter) for parameter in signature.parameters.values())
        assert f"`{hook.__name__}({arguments}) -> {signature.return_annotation}`" in page
        assert " ".join(inspect.getdoc(hook).split()) in " ".join(page.split())  # type: ignore[union-attr]


def test_the_public_names_of_core_are_exactly_these() -> None:
    assert core.__all__ == [
        "CompletionOutput",
        "CoreError",
        "EngineConfig",
        "LLM",
        "PoolingParams",
        "PoolingRequestOutput",
        "RequestOutput",
        "SamplingParams",
        "hookimpl",
        "__version__",
    ]
    assert all(getattr(core, name) is not None for name in core.__all__)
    assert set(core.__all__) <= set(dir(core))
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        core.Llm  # noqa: B018


# The tools


def test_the_linter_finds_nothing() -> None:
    result = run("-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_code_is_formatted() -> None:
    result = run("-m", "ruff", "format", "--no-cache", "--check", "--output-format", "concise", ".")
    assert result.returncode == 0, f"run  ruff format .\n{result.stdout[-2000:]}{result.stderr}"


def test_types_hold_strictly_in_core_and_as_usual_elsewhere() -> None:
    try:
        version = run("-m", "pyright", "--version", timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(
            "pyright did not start within two minutes: it fetches itself from the npm registry on first use"
        )
    if version.returncode != 0 or not re.search(r"pyright \d", version.stdout):
        said = (version.stderr or version.stdout).strip().splitlines()
        pytest.skip(f"pyright cannot start (it needs node, and the npm registry on first use): {said[-1:]}")
    result = run("-m", "pyright", "--pythonpath", sys.executable, "--outputjson", timeout=500)
    report = json.loads(result.stdout)
    errors = [
        f"{where(Path(d['file']), d['range']['start']['line'] + 1)} {d['message'].splitlines()[0]}"
        for d in report["generalDiagnostics"]
        if d["severity"] == "error"
    ]
    assert report["summary"]["filesAnalyzed"] >= len(sources(*PRODUCT))
    assert errors == []
