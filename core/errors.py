"""Everything the core raises on purpose: one class per reaction a caller can have.

    CoreError
    ├── ConfigError            a setting is wrong or does not fit: change the setting
    │   └── InsufficientMemory the numbers do not fit the memory: the message names the setting to change
    ├── RequestError           this request is refused, nothing else is affected: change the request
    │   └── RequestTooLong     the prompt, or prompt and answer together, exceed the context
    ├── QueueFull              too many requests are unfinished: send it again later
    ├── DeadlineExceeded       the answer was not finished in the time it was given
    ├── ModelError             the model cannot be loaded: change the model
    │   ├── ModelNotFound      nothing is there
    │   ├── UnsupportedArchitecture
    │   ├── BadCheckpoint      files are truncated, lie about their contents, or lack weights
    │   └── UnsafeCheckpoint   a format that can run code when it is read
    ├── PlatformError          the hardware or its plugin cannot do it: change the platform
    │   ├── NoPlatform         none can run, or the named one cannot
    │   ├── ContractViolation  a plugin does not keep its contract: change the plugin
    │   ├── UnsupportedShape   a kernel was asked for a shape outside its capabilities
    │   └── OutOfDeviceMemory  an allocation failed
    └── EngineError            the engine stopped: restart it
        └── EngineDead         its process is gone

A message states what happened, the value, what is accepted and the next step.
"""


class CoreError(Exception):
    """Base of every error that the core raises on purpose."""


class ConfigError(CoreError, ValueError):
    """A setting is wrong. `setting` is its name as the user typed it, without dashes."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class InsufficientMemory(ConfigError):
    """The model, its cache or one request does not fit the memory it was given."""


class RequestError(CoreError, ValueError):
    """A request is refused. `parameter` names the offending field, `code` is for machines."""

    code = "invalid_value"

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class RequestTooLong(RequestError):
    """The prompt, or prompt and answer together, exceed the context length."""

    code = "context_length_exceeded"


class QueueFull(CoreError):
    """The engine has as many unfinished requests as it may hold. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(CoreError):
    """An answer was not finished in the time that it was given; it was ended."""


class ModelError(CoreError):
    """The model cannot be loaded."""


class ModelNotFound(ModelError):
    """No model is at the place that was named."""


class UnsupportedArchitecture(ModelError):
    """No plugin brings this architecture."""


class BadCheckpoint(ModelError):
    """Files are truncated, contradict themselves, or lack weights."""


class UnsafeCheckpoint(ModelError):
    """The checkpoint is in a format that can run code when it is read."""


class PlatformError(CoreError):
    """The hardware, or the plugin that drives it, cannot do what was asked."""


class NoPlatform(PlatformError):
    """No platform can run, or the one that the user named cannot."""


class ContractViolation(PlatformError):
    """A plugin does not keep the contract; the message lists everything found."""


class UnsupportedShape(PlatformError):
    """A kernel was asked for a shape, dtype or feature outside its capabilities."""


class OutOfDeviceMemory(PlatformError):
    """The device has no room for an allocation."""


class EngineError(CoreError):
    """The engine failed in a step; requests that were running are lost."""


class EngineDead(EngineError):
    """The engine process is gone."""
