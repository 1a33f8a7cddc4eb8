"""One request over HTTP, and when each piece of its answer came.

aiohttp parses HTTP in C: measured against a server that does nothing else, it spends 50 µs on an event, where
httpx spends 130, so that 32 streams of 20 tokens a second take 3 % of one core.
"""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import msgspec

from cli.failures import CommandError
from cli.traffic.records import Record
from cli.traffic.settings import APIS, Target
from cli.traffic.texts import Question

if TYPE_CHECKING:
    import aiohttp

Ask = Callable[[Question, Record, float], Awaitable[Record]]

DETAIL = 300  # characters of an error's text that are kept


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def holds_text(self) -> bool:
        delta = self.delta
        said = delta is not None and (delta.content or delta.reasoning_content or delta.reasoning)
        return bool(self.text or said)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list[_Choice])
    usage: _Usage | None = None
    error: Any = None


class _Failed(Exception):
    """An answer went wrong: its kind, and the words for it."""


class Client:
    """An HTTP session with a server; a context manager. Raises CommandError where aiohttp is not installed."""

    def __init__(self, target: Target, api_key: str | None = None) -> None:
        self._aiohttp = imported_aiohttp()
        self._target = target
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._decoder = msgspec.json.Decoder(_Chunk)
        self.model = target.model

    async def __aenter__(self) -> Self:
        http = self._aiohttp
        self._session: aiohttp.ClientSession = http.ClientSession(
            headers=self._headers,
            timeout=http.ClientTimeout(total=self._target.timeout, connect=None),
            connector=http.TCPConnector(limit=0),
            cookie_jar=http.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, question: Question, record: Record, began: float) -> Record:
        """Send a question and fill in the record; `began` is the perf_counter from which it counts."""
        http = self._aiohttp
        record.sent = perf_counter() - began
        try:
            await self._answer(question, record, began)
        except _Failed as failure:
            record.error, record.detail = failure.args
        except TimeoutError:
            record.error, record.detail = "timeout", f"unfinished after {self._target.timeout:g} s"
        except http.ClientConnectorError as error:
            record.error, record.detail = "cannot connect", str(error)[:DETAIL]
        except (http.ClientError, OSError) as error:
            record.error, record.detail = "connection lost", str(error)[:DETAIL] or type(error).__name__
        record.ended = perf_counter() - began
        return record

    async def _answer(self, question: Question, record: Record, began: float) -> None:
        url = self._target.root + APIS[self._target.api]
        async with self._session.post(url, json=self._body(question)) as response:
            if response.status != 200:
                raise _Failed(f"HTTP {response.status}", await _words(response))
            rest, done = b"", False
            async for received in response.content.iter_any():
                now = perf_counter() - began
                *lines, rest = (rest + received).split(b"\n")
                for line in lines:
                    done = self._take(line.strip(), record, now) or done
            if not done:
                raise _Failed("cut off", "the stream ended without [DONE]")

    def _take(self, line: bytes, record: Record, now: float) -> bool:
        """One line of the stream. Returns whether it says that the answer is complete."""
        if not line.startswith(b"data:"):
            return False
        content = line[5:].strip()
        if content == b"[DONE]":
            return True
        try:
            chunk = self._decoder.decode(content)
        except msgspec.DecodeError as error:
            raise _Failed("not understood", f"{error}: {content[:DETAIL]!r}") from None
        if chunk.error is not None:
            raise _Failed("error in the stream", str(chunk.error)[:DETAIL])
        if any(choice.holds_text for choice in chunk.choices):
            record.pieces.append(now)
            record.num_output = max(record.num_output, len(record.pieces))
        elif not record.pieces and any(choice.finish_reason for choice in chunk.choices):
            record.pieces.append(now)  # an answer whose tokens have no text
        if chunk.usage is not None:
            record.num_prompt = chunk.usage.prompt_tokens
            record.num_output = chunk.usage.completion_tokens or record.num_output
        return False

    def _body(self, question: Question) -> dict[str, Any]:
        target = self._target
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": question.num_output,
            "temperature": target.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if target.ignore_eos:
            body["ignore_eos"] = True
        if target.api == "chat":
            return body | {"messages": [{"role": "user", "content": question.prompt}]}
        return body | {"prompt": question.prompt}

    async def find_model(self) -> str:
        """The model that is asked from now on: the one that was named, or the server's first. Raises CommandError."""
        if self.model is None:
            self.model = await self._first_model()
        return self.model

    async def _first_model(self) -> str:
        url = f"{self._target.root}/models"
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    raise CommandError(f"{url} answered HTTP {response.status}: {await _words(response)}")
                return (await response.json(content_type=None))["data"][0]["id"]
        except (self._aiohttp.ClientError, OSError) as error:
            raise CommandError(
                f"cannot reach {url}: {error or type(error).__name__}; --base-url says where the server is"
            ) from None
        except (ValueError, LookupError, TypeError):
            raise CommandError(f"{url} lists no model; name one with --model") from None


def imported_aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError:
        raise CommandError(
            'llm bench serve needs aiohttp, which is not installed:  pip install "core[bench]"'
        ) from None
    return aiohttp


async def _words(response: "aiohttp.ClientResponse") -> str:
    """The message of an error's body, or its beginning."""
    text = await response.text(errors="replace")
    try:
        found = msgspec.json.decode(text.encode())["error"]["message"]
    except (msgspec.DecodeError, LookupError, TypeError):
        found = text
    return str(found)[:DETAIL]
