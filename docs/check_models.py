"""Tries every architecture of the test suite, and keeps what came of it in models.json.

    python docs/check_models.py                    all of them, which takes minutes
    python docs/check_models.py GlmForCausalLM …   these again; what is known of others stays

models.md is made of that by generate.py. Not part of the wheel.
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULTS = ROOT / "docs" / "models.json"
PLATFORMS = ("cpu", "simulated")


def cases() -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Architecture, implementation, variant, and what its config has beyond tiny sizes."""
    from fallback_models import FALLBACK
    from test_deepseek import CONFIG
    from test_families import FAMILIES
    from test_jamba import MODELS
    from test_moe import ALL

    latent = {"deepseek v3 of three layers": ("DeepseekV3ForCausalLM", CONFIG)}
    for variant, (architecture, changes) in (FAMILIES | ALL | latent | MODELS).items():
        yield architecture, "native", variant, changes
    for architecture, changes in FALLBACK.items():
        yield architecture, "transformers", "", changes


def tried(architecture: str, implementation: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Per platform: "passed", or the reason why not."""
    from architectures import check, write_tiny

    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(Path(folder), architecture, changes)
        for platform in PLATFORMS:
            try:
                check(Path(folder), platform, implementation)
                results[platform] = "passed"
            except Exception as error:
                results[platform] = str(error).strip().splitlines()[-1].strip()
    return results


def refusals() -> Iterator[tuple[str, str]]:
    """Architectures that the fallback refuses, and the reasons."""
    from architectures import tiny_config
    from fallback_models import REFUSED

    from core.discovery import load_plugins
    from core.errors import UnsupportedArchitecture

    claim = load_plugins().fallbacks["transformers"].claim
    for architecture, (changes, _) in REFUSED.items():
        config = tiny_config(architecture, changes).to_dict() | {"architectures": [architecture]}
        try:
            claim(ROOT, config, False)
        except UnsupportedArchitecture as error:
            yield architecture, str(error)


def main(wanted: list[str]) -> int:
    """Returns the exit code: 1 when anything that was tried has failed."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"tried": {}}
    failed = False
    for architecture, implementation, variant, changes in cases():
        if wanted and architecture not in wanted:
            continue
        results = tried(architecture, implementation, changes)
        row = known["tried"].setdefault(architecture, {"implementation": implementation, "variants": {}})
        row["implementation"] = implementation
        row["variants"][variant or "as it is"] = results
        failed |= any(result != "passed" for result in results.values())
        print(architecture, variant, results, flush=True)
        _write(known)
    known["refused"] = dict(refusals())
    _write(known)
    return int(failed)


def _write(known: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
