"""What a seed's answers depend on besides the request: the software, the model, and how it is computed."""

from hashlib import sha256

from core import __version__
from core.engine.engine import EngineInfo


def system_fingerprint(info: EngineInfo) -> str:
    """The same text as long as the same request with the same seed is computed in the same way."""
    told = (
        __version__,
        info.model,
        info.architecture,
        info.platform,
        info.device,
        info.dtype,
        info.quantization,
        info.kv_cache_dtype,
    )
    return f"fp_{sha256(repr(told).encode()).hexdigest()[:12]}"
