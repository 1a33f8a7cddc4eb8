"""`python -m core.engine`: the engine in a process of its own, started by `core.engine.spawn`.

Torch takes longest of everything that a start imports, so that begins before anything else is known.
"""

import sys
import threading


def _import_torch() -> None:
    try:
        import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return  # whoever needs it says so


def main() -> int:
    importing = threading.Thread(target=_import_torch)
    importing.start()
    from core.engine.process import main as run

    try:
        return run()
    finally:
        importing.join()


if __name__ == "__main__":
    sys.exit(main())
