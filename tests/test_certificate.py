"""A certificate is read as it was written, and refused when it was not."""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
from mutant_platforms import DEVICE, Sound

import core
from core.conformance import Result
from core.conformance.certificate import (
    ROWS,
    BadCertificate,
    Certificate,
    as_text,
    certify,
    read,
    write,
)
from core.conformance.facts import lines_of, sources_sha256
from core.contracts.versions import VERSIONS
from core.discovery import load_plugins

RESULTS = [
    Result(level="ops", subject="linear", case="3x4", dtype="float32", figures={"error": 1e-7}),
    Result(level="ops", subject="linear", case="0x4", dtype="float32", problem='is "off" by … 3'),
    Result(level="ops", subject="argmax", case="one", unsupported="has none"),
]


def certificate(**changes: Any) -> Certificate:
    given: dict[str, Any] = {"distribution": "core", "signed_off_by": "Somebody"}
    levels = {"ops": (1.26, RESULTS), "memory": (0.0, [])}
    return certify(Sound(), DEVICE, changes.pop("levels", levels), **given | changes)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "sound.json"
    write(certificate(), path)
    return path


def forged(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a certificate and give it the sha256 of what it then is."""
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text(json.dumps(body | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_it_is_read_as_it_was_written(written: Path) -> None:
    found = read(written)
    assert as_text(found) == written.read_text()
    assert (found.platform, found.device, found.distribution, found.signed_off_by) == (
        "sound",
        "mutant",
        "core",
        "Somebody",
    )
    assert (found.core, found.distribution_version) == (core.__version__, core.__version__)
    assert found.contracts == {name: ".".join(map(str, version)) for name, version in VERSIONS.items()}
    assert found.machine.keys() == {"processor", "memory", "system", "python", "torch"}
    assert all(found.machine.values())
    assert found.date.endswith("+00:00")
    assert [finding.problem for finding in found.levels["ops"].results] == ["", 'is "off" by … 3', ""]


def test_what_passed_is_wrong_and_is_not_supported_is_counted_by_level(written: Path) -> None:
    found = read(written)
    assert len(ROWS) == 6
    assert found.rows() == [("ops", "3", "1", "1", "1", "1.3"), ("memory", "0", "0", "0", "0", "0.0")]
    assert (found.checks, found.wrong) == (3, 1)


def test_each_result_has_a_line_of_its_own(written: Path) -> None:
    lines = [line.strip().rstrip(",") for line in written.read_text().splitlines()]
    results = [json.loads(line) for line in lines if line.startswith('{"subject"')]
    assert [(result["subject"], result["case"]) for result in results] == [
        ("linear", "3x4"),
        ("linear", "0x4"),
        ("argmax", "one"),
    ]
    assert "problem" not in results[0]


def test_figures_that_json_cannot_hold_are_left_out(tmp_path: Path) -> None:
    figures = {"good": 1, "endless": math.inf, "none": math.nan}
    write(
        certificate(levels={"ops": (1, [Result(level="ops", subject="s", case="c", figures=figures)])}),
        tmp_path / "file",
    )
    (finding,) = read(tmp_path / "file").levels["ops"].results
    assert finding.figures == {"good": 1.0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('is \\"off\\" by … 3', "fine"),
        ("Somebody", "Somebody Else"),
        ('"wrong": 1', '"wrong": 0'),
        ("1e-07", "1e-08"),
        ('"quick": false', '"quick": true'),
    ],
)
def test_one_that_was_changed_is_refused(written: Path, old: str, new: str) -> None:
    text = written.read_text()
    assert text.count(old) == 1
    written.write_text(text.replace(old, new))
    with pytest.raises(BadCertificate, match="was changed after it was written: it states the sha256"):
        read(written)


def test_what_is_not_sealed_is_no_certificate(written: Path) -> None:
    written.write_text(json.dumps(certificate().as_dict(sealed=False)))
    with pytest.raises(BadCertificate, match="it states the sha256 None"):
        read(written)


def test_layout_is_not_part_of_what_is_certified(written: Path) -> None:
    written.write_text(json.dumps(json.loads(written.read_text())))
    assert read(written).wrong == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body: body.update(format=2), "is of format 2; this core reads 1"),
        (lambda body: body.pop("device"), "no certificate: .*device"),
        (lambda body: body.update(surprise=1), "no certificate: .*surprise"),
        (lambda body: body.update(quick="yes"), "no certificate: .*quick"),
        (
            lambda body: body["levels"]["ops"].update(wrong=0, passed=2),
            "for ops, whose results say otherwise",
        ),
        (lambda body: body["levels"]["ops"]["results"].pop(), "for ops, whose results say otherwise"),
        (lambda body: body["levels"]["ops"]["results"][0].update(case=3), "no certificate: .*case"),
    ],
)
def test_one_that_is_not_what_it_should_be_is_refused_whatever_its_sum(
    written: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    forged(written, change)
    with pytest.raises(BadCertificate, match=complaint):
        read(written)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a JSON list; a certificate is an object"),
        (b"{}", "is of format None; this core reads 1"),
        (b'{"format": 1}', "was changed after it was written"),
    ],
)
def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(BadCertificate, match=complaint):
        read(path)


def test_one_that_was_cut_short_or_is_missing_is_refused(written: Path, tmp_path: Path) -> None:
    written.write_text(written.read_text()[:-20])
    with pytest.raises(BadCertificate, match="is not JSON"):
        read(written)
    with pytest.raises(BadCertificate, match=r"cannot read .*absent\.json: no such file"):
        read(tmp_path / "absent.json")


def test_the_lines_are_those_of_the_package_that_declares_the_platform() -> None:
    platform, _ = load_plugins().select_platform("cpu")
    folder = Path(__file__).parent.parent / "platforms" / "cpu"
    found = lines_of(platform)
    assert found.python == sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))
    assert found.other == sum(len(path.read_text().splitlines()) for path in folder.rglob("*.h"))
    assert str(found) == f"{found.python:,} lines of Python, and {found.other:,} in other languages"


def test_the_sum_of_the_sources_changes_with_a_source_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sources_of"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from {Sound.__module__} import Sound\n\n\nclass Own(Sound):\n    pass\n"
    )
    spec = spec_from_file_location("sources_of", package / "__init__.py")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, spec.name, module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
    before = sources_sha256("sources_of")
    assert certificate().sources_sha256 == sources_sha256(Sound.__module__)
    (package / "tables.json").write_text("{}")
    assert sources_sha256("sources_of") == before
    (package / "kernels.cpp").write_text("int one;\n")
    after = sources_sha256("sources_of")
    assert after != before
    (package / "kernels.cpp").rename(package / "kernel.cpp")
    assert sources_sha256("sources_of") not in (before, after)


def test_the_sum_over_the_core_is_of_its_kernels_reference_and_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "core"
    copytree(Path(core.__file__).parent, copy, ignore=ignore_patterns("__pycache__"))
    monkeypatch.setattr(core, "__file__", str(copy / "__init__.py"))
    sums = [certificate().core_sources_sha256]
    for name in ("native/csrc/linear.cpp", "reference/norm.py", "conformance/compare.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        sums.append(certificate().core_sources_sha256)
    assert len({*sums}) == 4


def test_a_module_in_no_package_is_counted_alone() -> None:
    found = lines_of(Sound())
    mine = Path(__file__).with_name("mutant_platforms.py")
    assert (found.python, found.other) == (len(mine.read_text().splitlines()), 0)
    assert str(found) == f"{found.python:,} lines of Python"


def test_a_distribution_that_is_not_installed_has_no_version() -> None:
    assert certificate(distribution="nobody-installed-this").distribution_version == "unknown"
