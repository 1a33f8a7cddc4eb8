"""The engines of a server: started one after the other, watched, started anew when they die, ended."""

import asyncio
import faulthandler
import logging
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

from core.config import EngineConfig
from core.contracts.source import Progress
from core.engine.async_engine import AsyncEngine
from core.engine.room import Room
from core.errors import ConfigError, CoreError
from server.settings import ServerSettings
from server.state import Served, State, public_name

log = logging.getLogger("server")

HEARTBEAT_S = 1.0
"""An engine is asked for a word so often, and less when it takes longer to answer."""

UNREAD_S = 0.1
"""When this process was late itself, how long it takes to read what an engine said in the meantime."""

STACKS_S = 0.5
"""How long an engine that hangs gets to write its stacks."""

STEADY_S = 60.0
"""An engine that lived for so long did not die of its start."""

MAX_QUICK_DEATHS = 5
BACK_OFF_S = 0.5
"""Before the first start anew; twice as long before each that follows a quick death."""


class Fleet:
    """An engine for each config; the first serves requests that name no model. Belongs to one event loop."""

    def __init__(self, configs: Sequence[EngineConfig], settings: ServerSettings, progress: Progress) -> None:
        """Raises ConfigError when models cannot be told apart, or share more memory than there is."""
        self._settings = settings
        self._progress = progress
        self.configs = dict(zip(_names(configs, settings), _shared(configs), strict=True))
        self._served: list[Served] = []

    async def start(self) -> State:
        """Start every engine, one after the other: each finds the memory that those before it have left.

        Raises what `AsyncEngine.start` raises; then, and when it is cancelled, no engine is left.
        """
        try:
            for name, config in self.configs.items():
                engine = await self._start(config)
                self._served.append(Served(name=name, spelled=config.model, engine=engine))
        except BaseException:
            await self.close()
            raise
        return State(self._settings, self._served)

    async def watch(self) -> str:
        """Returns why, once an engine is dead and is not started anew."""
        keeping = [asyncio.ensure_future(self._keep(served)) for served in self._served]
        try:
            ended, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
            return ended.pop().result()
        finally:
            for kept in keeping:
                kept.cancel()
            await asyncio.wait(keeping)

    async def close(self) -> None:
        """End every engine."""
        await asyncio.gather(*(served.engine.close() for served in self._served))

    async def _start(self, config: EngineConfig) -> AsyncEngine:
        room = Room(self._settings.max_queued, self._settings.max_queued_tokens)
        return await AsyncEngine.start(config, progress=self._progress, room=room)

    async def _keep(self, served: Served) -> str:
        """Start the engine anew whenever it dies. Returns why it died when that is enough."""
        enough = MAX_QUICK_DEATHS if self._settings.restart_engine else 1
        reason = await self._death(served)
        deaths = 1  # in a row
        while deaths < enough:
            delay = BACK_OFF_S * 2 ** (deaths - 1)
            log.error("%s: %s; its engine is started anew in %g s", served.name, reason, delay)
            await asyncio.sleep(delay)
            lived = 0.0
            try:
                await served.engine.close()
                served.replace(await self._start(self.configs[served.name]))
                began = monotonic()
                reason = await self._death(served)
                lived = monotonic() - began
            except (CoreError, OSError) as error:  # no memory, no files, no processes: perhaps later
                reason = str(error)
            deaths = 1 if lived > STEADY_S else deaths + 1
        return reason if enough == 1 else f"{reason} ({deaths} times in a row)"

    async def _death(self, served: Served) -> str:
        """Why the engine died, once it has. It is killed when it hangs."""
        engine, patience = served.engine, self._settings.engine_timeout
        dying = asyncio.ensure_future(engine.wait_until_dead())
        try:
            while not dying.done():
                engine.ping()
                await asyncio.wait({dying}, timeout=min(HEARTBEAT_S, patience / 4))
                if engine.silent_for > patience:
                    await asyncio.sleep(UNREAD_S)
                if engine.silent_for > patience:
                    await self._kill(served)
            return dying.result()
        finally:
            dying.cancel()

    async def _kill(self, served: Served) -> None:
        reason = f"the engine said nothing for {self._settings.engine_timeout:g} s and was killed"
        log.error("%s: the engine hangs; stacks of the server and of the engine follow", served.name)
        faulthandler.dump_traceback()
        served.engine.say_stacks()
        await asyncio.sleep(STACKS_S)
        served.engine.kill(reason)


def _names(configs: Sequence[EngineConfig], settings: ServerSettings) -> list[str]:
    """What clients call the models."""
    given = settings.served_model_name
    if given is not None and len(configs) == 1:
        return [given]
    if given is not None:
        raise ConfigError(
            f"served_model_name is {given!r}, which names one model, and {len(configs)} are served; leave it out",
            setting="served_model_name",
        )
    names = [public_name(config.model) for config in configs]
    for i, name in enumerate(names):
        if (first := names.index(name)) < i:
            raise ConfigError(
                f"{configs[first].model} and {configs[i].model} would both be served as {name!r}; "
                "models of one server need different names",
                setting="model",
            )
    return names


def _shared(configs: Sequence[EngineConfig]) -> list[EngineConfig]:
    """With a share of the memory for each config that asks for no amount: those that name none get equal parts."""
    given = sum(config.memory_share or 0.0 for config in configs)
    unsaid = sum(config.memory_share is None and config.kv_cache_memory is None for config in configs)
    if given > 1 or (given == 1 and unsaid):
        raise ConfigError(
            f"memory_share comes to {given:g} for {len(configs)} models; together they may have 1",
            setting="memory_share",
        )
    return [
        replace(config, memory_share=(1 - given) / unsaid)
        if config.memory_share is None and config.kv_cache_memory is None
        else config
        for config in configs
    ]
