"""What the engine process and its client say to each other, as msgpack.

Every message is a tagged struct; a decoder accepts the messages of its own direction and nothing else, so
bytes that are not one of them end as an error and never as code. What the messages carry (requests, deltas,
statistics) belongs to the engine.
"""

import struct
from typing import BinaryIO

import msgspec

from core import errors
from core.config import EngineConfig
from core.engine.engine import EngineInfo, EngineStatistics, SequenceDelta
from core.engine.request import Request
from core.errors import ConfigError, CoreError, EngineError, RequestError


class Start(msgspec.Struct, frozen=True):
    """The first and only message on the child's standard input: where to connect, and what to build."""

    address: str
    parent_pid: int
    config: EngineConfig


class AddRequest(msgspec.Struct, tag=True, frozen=True):
    request: Request


class Abort(msgspec.Struct, tag=True, frozen=True):
    request_ids: list[str]


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Single answers, by request id and index, whose text reached a stop string."""

    answers: list[tuple[str, int]]


class AskStatistics(msgspec.Struct, tag=True, frozen=True):
    """Answered by one Statistics, in the order of asking."""


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Stop now; whatever runs is lost."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """Something slow begins. The first message of all is one with an empty line: the process is connected."""

    line: str


class Located(msgspec.Struct, tag=True, frozen=True):
    """Where the tokenizer is: the client can load it while the engine loads the model."""

    tokenizer_path: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    info: EngineInfo


class Failed(msgspec.Struct, tag=True, frozen=True):
    """An error to be raised again on the other side: the engine could not start, or refuses `request_id`."""

    error: str
    message: str
    detail: str | None = None
    request_id: str | None = None


class Deltas(msgspec.Struct, tag=True, frozen=True):
    """What one step added, if only nothing, and how things stand after it."""

    deltas: list[SequenceDelta]
    statistics: EngineStatistics


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """A step raised; the process ends now and every request with it."""

    message: str


class Statistics(msgspec.Struct, tag=True, frozen=True):
    statistics: EngineStatistics


ToEngine = AddRequest | Abort | Stop | AskStatistics | Shutdown
FromEngine = Progress | Located | Ready | Failed | Deltas | EngineFailed | Statistics

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)
_start = msgspec.msgpack.Decoder(Start)
_LENGTH = struct.Struct(">I")


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(raw: bytes) -> ToEngine:
    """Raises msgspec.DecodeError when the bytes are not a message for the engine."""
    return _to_engine.decode(raw)


def decode_from_engine(raw: bytes) -> FromEngine:
    """Raises msgspec.DecodeError when the bytes are not a message of the engine's."""
    return _from_engine.decode(raw)


def frame_start(start: Start) -> bytes:
    """The Start message with its length in front, as `read_start` wants it."""
    raw = _encoder.encode(start)
    return _LENGTH.pack(len(raw)) + raw


def read_start(stream: BinaryIO) -> Start:
    """Raises EOFError when the stream ends early, msgspec.DecodeError when it holds something else."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError("the parent closed the pipe before it said what to build")
    return _start.decode(stream.read(_LENGTH.unpack(head)[0]))


def failure(error: CoreError, request_id: str | None = None) -> Failed:
    """The error as a message: its class, its text, and the setting or parameter that it names."""
    detail = None
    if isinstance(error, ConfigError):
        detail = error.setting
    elif isinstance(error, RequestError):
        detail = error.parameter
    return Failed(error=type(error).__name__, message=str(error), detail=detail, request_id=request_id)


def raised_again(failed: Failed) -> CoreError:
    """The error that `failure` described: the same class with the same text."""
    kind = vars(errors).get(failed.error)
    if not (isinstance(kind, type) and issubclass(kind, CoreError)):
        return EngineError(f"{failed.error}: {failed.message}")
    if issubclass(kind, ConfigError):
        return kind(failed.message, setting=failed.detail)
    if issubclass(kind, RequestError):
        return kind(failed.message, parameter=failed.detail)
    return kind(failed.message)
