"""The C++ kernels are compiled once, kept privately, and their absence is explained."""

import os
import platform
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from core.errors import ConfigError, PlatformError
from core.native import toolchain
from core.native.library import NativeLibrary, native_library, openmp_library
from core.native.toolchain import NativeBuild, compiled, find_compiler, folder, located, obtainable
from platforms.cpu.isa import levels

SOURCE = """
#include "answer.h"
extern "C" {
int omp_get_max_threads();
int answer() { return ANSWER; }
int team_size() { return omp_get_max_threads(); }
}
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no library remembered from another test."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    native_library.cache_clear()
    yield tmp_path / "cache"
    native_library.cache_clear()


@pytest.fixture
def build(tmp_path: Path) -> NativeBuild:
    """Two source files and a header that a platform could bring."""
    sources, include = tmp_path / "sources", tmp_path / "include"
    sources.mkdir()
    include.mkdir()
    (sources / "answer.cpp").write_text(SOURCE)
    (sources / "other.cpp").write_text('extern "C" int other() { return 7; }\n')
    (include / "answer.h").write_text("#define ANSWER 42\n")
    return NativeBuild((include,), (), "trial", sources)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a line for every file that is compiled."""
    log, script = tmp_path / "calls", tmp_path / "counting-g++"
    log.touch()
    script.write_text(f'#!/bin/sh\ncase "$*" in *" -c "*) echo compiled >> {log};; esac\nexec g++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log


def loaded(build: NativeBuild) -> NativeLibrary:
    library = native_library(build)
    assert isinstance(library, NativeLibrary), library
    return library


def test_compiles_every_source_with_the_platforms_headers(build: NativeBuild) -> None:
    library = loaded(build)

    assert (library.functions.answer(), library.functions.other()) == (42, 7)


def test_the_kernels_share_torchs_threads(build: NativeBuild) -> None:
    import torch

    team_size, before = loaded(build).functions.team_size, torch.get_num_threads()
    for threads in (1, 3, before):
        torch.set_num_threads(threads)
        assert team_size() == threads
    with suppress(ImportError):  # where it is, it brings an OpenMP library of its own
        import sentencepiece  # noqa: F401
    assert "torch" in str(openmp_library())


def test_what_was_compiled_once_is_not_compiled_again(build: NativeBuild, calls: Path) -> None:
    first = compiled(build)
    assert calls.read_text().count("compiled") == 2

    assert compiled(build) == located(build) == first
    assert calls.read_text().count("compiled") == 2


@pytest.mark.parametrize("changed", ["header", "source", "flags", "name", "compiler"])
def test_a_library_belongs_to_its_sources_flags_and_compiler(
    build: NativeBuild, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled(build)
    if changed == "header":
        (build.include[0] / "answer.h").write_text("#define ANSWER 43\n")
    elif changed == "source":
        (build.sources / "other.cpp").write_text('extern "C" int other() { return 8; }\n')
    elif changed == "flags":
        build = NativeBuild(build.include, ("-DNDEBUG",), build.name, build.sources)
    elif changed == "name":
        build = NativeBuild(build.include, build.flags, "another", build.sources)
    else:
        monkeypatch.setenv("CXX", "g++ -Wall")

    assert compiled(build) != before


def test_other_processes_wait_for_the_one_that_compiles(build: NativeBuild, calls: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(compiled(build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(paths) == 4 and len(set(paths)) == 1
    assert calls.read_text().count("compiled") == 2
    assert [path.name for path in folder().iterdir()] == [paths[0].name]


def test_a_file_that_was_cut_short_is_made_again(build: NativeBuild) -> None:
    compiled(build).write_bytes(b"\x7fELF")

    assert loaded(build).functions.answer() == 42


def after_change(build: NativeBuild, answer: int) -> NativeBuild:
    """The same build after a change to its sources."""
    (build.include[0] / "answer.h").write_text(f"#define ANSWER {answer}\n")
    return build


def unused_for(library: Path, days: float) -> Path:
    then = time.time() - days * 24 * 3600
    os.utime(library, (then, then))
    return library


def test_libraries_of_older_sources_go_when_they_were_not_used_for_a_month(build: NativeBuild) -> None:
    other_flags = NativeBuild(build.include, ("-DNDEBUG",), build.name, build.sources)
    elsewhere, old, recent = compiled(other_flags), compiled(build), compiled(after_change(build, 43))
    for library, days in ((elsewhere, 31), (old, 31), (recent, 29)):
        unused_for(library, days)
    (folder() / ".building-cut-off").mkdir()

    newest = compiled(after_change(build, 45))

    assert {path.name for path in folder().iterdir()} == {path.name for path in (recent, elsewhere, newest)}


def test_a_library_that_a_process_has_loaded_stays(build: NativeBuild) -> None:
    held = unused_for(loaded(build).path, days=400)

    compiled(after_change(build, 43))

    assert held.exists()


def test_using_a_library_is_noted(build: NativeBuild) -> None:
    library = unused_for(compiled(build), days=31)

    compiled(build)

    assert time.time() - library.stat().st_mtime < 60


def test_only_this_user_can_reach_the_cache(build: NativeBuild) -> None:
    compiled(build)

    assert stat.S_IMODE(folder().stat().st_mode) == 0o700


def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(build: NativeBuild) -> None:
    compiled(build)
    folder().chmod(0o777)

    reason = native_library(build)

    assert isinstance(reason, str) and "can be written by other users" in reason and "LLM_CACHE" in reason


def test_the_compilers_own_words_are_the_reason(build: NativeBuild, caplog: pytest.LogCaptureFixture) -> None:
    (build.sources / "other.cpp").write_text("int other() { return undeclared; }\n")

    reasons = [native_library(build) for _ in range(3)]

    assert "other.cpp:1" in str(reasons[0]) and "undeclared" in str(reasons[0])
    assert reasons[1:] == reasons[:1] * 2
    assert sum("cannot be used" in message for message in caplog.messages) == 1
    assert list(folder().iterdir()) == []


def test_without_a_compiler_the_reason_says_what_to_install(
    build: NativeBuild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert native_library(build) == "no C++ compiler was found; install g++, or name one in CXX"


def test_without_a_compiler_what_was_compiled_before_is_used(
    build: NativeBuild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = compiled(build)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert loaded(build).path == before


def test_a_library_can_be_had_with_a_compiler_or_from_before(
    build: NativeBuild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert obtainable(build)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not obtainable(build)
    assert not folder().exists()

    monkeypatch.delenv("CXX")
    compiled(build)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert obtainable(build)


def test_a_compiler_that_is_named_and_missing_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache nothing-like-g++")
    with pytest.raises(PlatformError, match="CXX names ccache" if not shutil.which("ccache") else "answer"):
        find_compiler()


def test_a_cache_that_cannot_be_written_names_its_setting(
    build: NativeBuild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "file"))

    with pytest.raises(ConfigError, match="LLM_CACHE"):
        compiled(build)


def test_a_compiler_that_hangs_is_ended_with_all_its_processes(
    build: NativeBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, pids = tmp_path / "hanging", tmp_path / "pids"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version) echo 1;; *) sleep 600 & echo $! >> {pids}; wait;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(toolchain, "COMPILE_SECONDS", 1.0)

    with pytest.raises(PlatformError, match="more than 1 seconds"):
        compiled(build)

    started = pids.read_text().split()
    assert len(started) == 2
    deadline = time.monotonic() + 5  # a signal takes a moment
    while any(_runs(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_runs(pid) for pid in started)
    assert list(folder().iterdir()) == []


def _runs(pid: str) -> bool:
    """Whether a process lives; one that is only waiting to be collected does not."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Levels of the instruction set

x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="levels are of x86-64")


def test_the_processors_own_level_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(levels.VARIABLE, raising=False)

    assert levels.chosen_level() == "native"
    assert next(iter(levels.builds())) == "native"


@x86_only
def test_a_lower_level_can_be_chosen_and_has_a_library_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.VARIABLE, "baseline")

    builds = levels.builds()

    assert list(builds) == ["baseline", "native", "avx512", "avx2"]
    assert levels.chosen_build() == builds["baseline"]
    assert len({toolchain._key(build) for build in builds.values()}) == len(builds)


@pytest.mark.parametrize("level", ["avx1024", ""])
def test_a_level_that_does_not_exist_is_refused(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.VARIABLE, level)
    with pytest.raises(ConfigError, match=r"LLM_CPU_ISA is .*native.* are accepted"):
        levels.chosen_level()


@x86_only
def test_a_level_that_this_processor_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: sse2 avx2 bmi2 fma f16c avx512f\n")
    monkeypatch.setattr(levels, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv(levels.VARIABLE, "avx512")

    with pytest.raises(ConfigError, match=r"lacks avx512bw.*avx512_bf16; unset it"):
        levels.chosen_level()

    monkeypatch.setenv(levels.VARIABLE, "avx2")
    assert levels.chosen_level() == "avx2"
