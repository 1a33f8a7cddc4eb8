"""A look at a machine: device files, drivers' variables, what torch says of itself."""

from pathlib import Path

import pytest
from machines import Machine

from core.probing import Host


def test_what_is_found_comes_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    host = Machine(files={f"dev/davinci{i}": "" for i in (10, 2, 0, 1)}).host(tmp_path)

    assert [path.name for path in host.files("dev/davinci*")] == [f"davinci{i}" for i in (0, 1, 2, 10)]
    assert host.files("dev/nothing*") == []


def test_one_device_file_that_may_be_opened_is_enough(tmp_path: Path) -> None:
    host = Machine(files={"dev/davinci0": "", "dev/davinci1": ""}, closed=["dev/davinci0"]).host(tmp_path)
    nodes = host.files("dev/davinci*")

    assert host.closed(nodes) == ""
    assert host.closed(nodes[:1]).startswith("this user may not open /dev/davinci0: ")


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, "abcd"),
        ("", ""),
        ("2", "c"),
        ("3, 0", "da"),
        ("-1", ""),
        ("1,9,2", "b"),
        ("0,-1,1", "a"),
        ("GPU-8932f937", "abcd"),
    ],
)
def test_variables_hide_devices_and_order_them(value: str | None, left: str) -> None:
    host = Host(environment={} if value is None else {"SEEN": value})

    assert host.visible("abcd", "SEEN", "UNSET") == list(left)


@pytest.mark.parametrize(
    ("stated", "built"),
    [
        ("cuda: Optional[str] = '12.8'\n", "12.8"),
        ('cuda = "12.8"\n', "12.8"),
        ("cuda: Optional[str] = None\n", ""),
        ("__all__ = ['cuda']\n", None),
        ("cuda_extra = '1'\n", None),
        ("", None),
    ],
)
def test_what_torch_was_built_for_is_read_and_not_run(stated: str, built: str | None, tmp_path: Path) -> None:
    assert Machine(torch=stated).host(tmp_path).torch_built_for("cuda") == built
    assert Machine(torch=None).host(tmp_path).torch_built_for("cuda") is None


def test_this_machine_has_the_packages_that_it_has() -> None:
    host = Host()

    assert host.packages("torch") is not None and host.packages("no_such_package_here") is None
    assert host.torch_built_for("cuda") is not None
    assert host.library("libno-such-library.so.9") is None
    assert host.text("dev/no-such-file") == "" and host.cards(0xFFFF) == []
