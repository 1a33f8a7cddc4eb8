"""Model architectures. This module declares them; it imports torch only when one is built."""

from core import hookimpl
from core.contracts.model import Architecture


@hookimpl
def core_architectures() -> list[Architecture]:
    from models.llama import LLAMA, MISTRAL, QWEN2, QWEN3

    return [LLAMA, MISTRAL, QWEN2, QWEN3]
