"""A platform of hardware that is not here, run whole on a stand-in: a device of the same name, made in Python.

What torch calls npu is a device from outside torch, and so is the one in tests/openreg_platform. Under that name it
takes torch_npu's place, and everything behind the probe runs: memory and execution of any accelerator, the reference's
attention and kernels, the engine. It refuses to mix its tensors with the host's, so nothing is computed there by
mistake. It says nothing of the hardware, nor of the vendor's package.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

RUN = """
import json, sys
from pathlib import Path
from machines import Machine
from core.conformance import Options
from core.conformance.levels import run
from platforms.ascend.platform import AscendPlatform
libraries = {"libascendcl.so": object()}
machine = Machine(files={"dev/davinci0": ""}, libraries=libraries, packages=["torch_npu"])
platform = AscendPlatform(machine.host(Path(sys.argv[1])))
(device,) = platform.probe().devices
options = Options(quick=True, dtypes=("float32",))
results = run(platform, device, sys.argv[2].split(), options, lambda result: None)
import torch
kinds = torch.zeros(1, device="npu").device.type, torch.npu.mem_get_info()[1]
print(json.dumps([kinds, [[result.level, result.status, str(result)] for result in results]]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a process in which `import torch_npu` gives torch a device."""
    site = tmp_path_factory.mktemp("site")
    (site / "torch_npu.py").write_text(
        'from openreg_platform.tensor import register\n\nregister("npu", 2**28)\n'
    )
    own = (site, TESTS, TESTS / "openreg_platform")
    path = os.pathsep.join([*map(str, own), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


@pytest.mark.parametrize(
    "least",
    [
        {"ops": 70, "attention": 30, "memory": 13},
        pytest.param({"engine": 15}, marks=pytest.mark.slow),
    ],
    ids=["parts", "engine"],
)
def test_a_platform_without_anything_of_its_own_runs_on_a_device_of_its_own(
    environment: dict[str, str], least: dict[str, int], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path), " ".join(least)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    kinds, results = json.loads(ran.stdout)
    counts = Counter(level for level, status, _ in results if status == "passed")

    assert kinds == ["npu", 2**28]
    assert [words for _, status, words in results if status == "wrong"] == []
    assert {level: counts[level] for level in least if counts[level] < least[level]} == {}
