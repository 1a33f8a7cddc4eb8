"""A torch device that is made in Python: its tensors, and how torch learns of it, once in a process and for good.

A tensor of the device is a wrapper: shape, strides and device are its own, and its numbers lie in `host`, which stands
for the device's memory. Every operation that torch dispatches is run on what is wrapped. As on real hardware, one that
mixes the device's tensors with the host's is refused, and what is brought to the host is a copy.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_HOST = torch.device("cpu")
_ATEN = torch.ops.aten
_LIBRARY = torch.library.Library("aten", "IMPL")
# Operations that move data between devices, or take indices from the host, as on any accelerator.
_MIXED = (_ATEN.copy_, _ATEN.index, _ATEN.index_put_, _ATEN.index_put)
# Of the factories, those that the others are made of; arange would resize what it gets.
_FACTORIES = (
    _ATEN.empty.memory_format,
    _ATEN.empty_strided.default,
    _ATEN.arange.default,
    _ATEN.arange.start,
    _ATEN.arange.start_step,
)


class DeviceModule:
    """What torch.NAME is: torch asks it about devices. It counts what was taken of `limit` bytes."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit, self.taken = name, limit, 0

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, index: int) -> None:
        if index != 0:
            raise RuntimeError(f"there is no {self.name}:{index}; {self.name}:0 is the only one")

    def synchronize(self) -> None:
        return

    def mem_get_info(self, index: int = 0) -> tuple[int, int]:
        return self.limit - self.taken, self.limit

    def manual_seed_all(self, seed: int) -> None:
        return

    def _is_in_bad_fork(self) -> bool:
        return False

    def take(self, size: int, host: Tensor) -> None:
        """Count a tensor's bytes for as long as its memory is there."""
        self.taken += size
        weakref.finalize(host.untyped_storage(), self._give_back, size).atexit = False

    def _give_back(self, size: int) -> None:
        self.taken -= size


class DeviceTensor(Tensor):
    """A tensor on the device; `host` is for kernels of the device alone."""

    host: Tensor

    # Without it torch would make wrappers of what an operation brings to the host.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "DeviceTensor":
        # As autograd sees what is wrapped: a view of an ordinary tensor stays one in inference mode.
        with torch.inference_mode(host.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                host.size(),
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=_device(),
            )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(function, args, dict(kwargs or {}))

    def tolist(self) -> list[Any]:
        """torch leaves this one to each class."""
        return self.host.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{self.host!r} on {_device()}"


def register(name: str, limit: int) -> DeviceModule:
    """Give torch a device of this name with so many bytes of memory. Works once in a process."""
    module = DeviceModule(name, limit)
    _setup_privateuseone_for_python_backend(name, backend_module=module)
    for function in _FACTORIES:
        _LIBRARY.impl(function, _factory(function, module), "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    return module


def on_host(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of the device, for its kernels to work on where they lie."""
    if not isinstance(tensor, DeviceTensor):
        raise RuntimeError(f"a tensor of {tensor.device} was given to a kernel of {_device()}")
    return tensor.host


def _device() -> torch.device:
    return torch.device(torch._C._get_privateuse1_backend_name(), 0)


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known: dict[int, Tensor] = {}
    mixed = function.overloadpacket in _MIXED
    leaves = pytree.tree_leaves((args, kwargs))
    to_host = any(isinstance(leaf, torch.device) and leaf.type == _HOST.type for leaf in leaves)

    def given(value: Any) -> Any:
        if isinstance(value, torch.device):
            return _HOST
        if not isinstance(value, Tensor):
            return value
        if not isinstance(value, DeviceTensor) and value.dim() and not mixed:
            raise RuntimeError(f"{function}: a tensor of {value.device} among those of {_device()}")
        inner = value.host if isinstance(value, DeviceTensor) else value
        known[id(inner)] = value
        return inner

    def returned(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if to_host:
            return value.clone()  # what comes back is a copy even where nothing had to be converted
        before = known.get(id(value))
        if before is None:
            return DeviceTensor(value)
        if before.shape != value.shape:
            raise RuntimeError(f"{function}: tensors of {_device()} keep the shape that they were made with")
        return before  # written in place, or handed through

    return pytree.tree_map(
        returned, function(*pytree.tree_map(given, args), **pytree.tree_map(given, kwargs))
    )


def _factory(function: Any, module: DeviceModule) -> Callable[..., Tensor]:
    """What makes tensors from nothing: it has none to dispatch on, and takes memory."""

    def make(*args: Any, **kwargs: Any) -> Tensor:
        size = function(*args, **{**kwargs, "device": torch.device("meta")}).untyped_storage().nbytes()
        free, _ = module.mem_get_info()
        if size > free:
            raise torch.OutOfMemoryError(f"{module.name}: {size} bytes, of which {free} are free")
        host: Tensor = function(*args, **{**kwargs, "device": _HOST})
        module.take(size, host)
        return DeviceTensor(host)

    return make


def _copy_from(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
    """How torch.tensor(..., device=...) fills what it has made: below the level of dispatch to Python."""
    inner = [each.host if isinstance(each, DeviceTensor) else each for each in (source, destination)]
    inner[1].copy_(inner[0])
    return destination
