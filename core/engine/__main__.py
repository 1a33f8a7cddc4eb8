"""`python -m core.engine`: the engine in a process of its own, started by `core.engine.spawn`.

What runs a model takes longest of everything that a start imports, so that begins before anything else is known.
"""

import gc
import sys
import threading
from contextlib import suppress
from importlib import import_module


def main() -> int:
    """Be the engine's process; returns its exit code."""
    gc.disable()  # until the engine is built: what is imported stays, and looking for garbage in it takes 0.1 s
    importing = threading.Thread(target=_import_runner)
    importing.start()
    from core.engine.process import main as run

    try:
        return run()
    finally:
        importing.join()


def _import_runner() -> None:
    with suppress(ImportError):  # whoever needs it says so
        import_module("core.execution.runner")


if __name__ == "__main__":
    sys.exit(main())
