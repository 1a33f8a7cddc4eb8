"""The smallest server around OpenVINO GenAI's pipeline: streamed /v1/completions, and /health.

    python openvino_server.py PORT SETTINGS      (the fields of `Settings`, as JSON)

One thread steps the pipeline, asyncio speaks HTTP. `run.py` starts it in the environment of OpenVINO, where it needs
aiohttp. It is a yardstick, so it does no work that it can avoid: what a step brings is decoded in one call.
"""

import asyncio
import json
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from aiohttp import web
from engines import Settings
from engines.openvino import pipeline

Queue = asyncio.Queue[tuple[str, int] | None]


@dataclass(eq=False)
class Stepper:
    """Requests that wait for a step, and the thread that makes steps."""

    pipe: Any
    loop: asyncio.AbstractEventLoop
    arrived: list[tuple[list[int], Any, Queue]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, ids: list[int], config: Any, queue: Queue) -> None:
        with self.changed:
            self.arrived.append((ids, config, queue))
            self.changed.notify()

    def run(self) -> None:
        live: list[tuple[Any, Queue]] = []
        number = 0
        while True:
            with self.changed:
                while not self.arrived and not live:
                    self.changed.wait()
                new, self.arrived = self.arrived, []
            for ids, config, queue in new:
                number += 1
                prompt = openvino.Tensor(np.array([ids], dtype=np.int64))
                live.append((self.pipe.add_request(number, prompt, config), queue))
            self.pipe.step()
            running = genai.GenerationStatus.RUNNING
            ended = [queue for handle, queue in live if handle.get_status() != running]
            self.loop.call_soon_threadsafe(deliver, self.texts(live), ended)
            live = [(handle, queue) for handle, queue in live if queue not in ended]

    def texts(self, live: list[tuple[Any, Queue]]) -> list[tuple[Queue, str, int]]:
        """What the last step brought: the stream, its text, the number of tokens."""
        ready: list[tuple[Queue, list[int]]] = []
        for handle, queue in live:
            ids: list[int] = []
            while handle.can_read():
                ids += [token for part in handle.read().values() for token in part.generated_ids]
            if ids:
                ready.append((queue, ids))
        decoded = self.pipe.get_tokenizer().decode([ids for _, ids in ready]) if ready else []
        return [(queue, text, len(ids)) for (queue, ids), text in zip(ready, decoded, strict=True)]


def deliver(texts: list[tuple[Queue, str, int]], ended: list[Queue]) -> None:
    for queue, text, count in texts:
        queue.put_nowait((text, count))
    for queue in ended:
        queue.put_nowait(None)


async def completions(stepper: Stepper, request: web.Request) -> web.StreamResponse:
    body = await request.json()
    ids = body["prompt"]
    if isinstance(ids, str):
        ids = stepper.pipe.get_tokenizer().encode(ids).input_ids.data[0].tolist()
    config = genai.GenerationConfig()
    config.max_new_tokens, config.do_sample = body["max_tokens"], False
    if body.get("ignore_eos"):
        config.ignore_eos, config.min_new_tokens = True, config.max_new_tokens
    queue: Queue = asyncio.Queue()
    stepper.add(ids, config, queue)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    total = 0
    while (item := await queue.get()) is not None:
        total += item[1]
        event = {"choices": [{"index": 0, "text": item[0], "finish_reason": None}]}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    usage = {"choices": [], "usage": {"prompt_tokens": len(ids), "completion_tokens": total}}
    await response.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
    return response


async def main() -> None:
    port, settings = int(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    stepper = Stepper(pipeline(settings), asyncio.get_running_loop())
    threading.Thread(target=stepper.run, daemon=True).start()
    app = web.Application(client_max_size=8 << 20)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await completions(stepper, request)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app.add_routes([web.post("/v1/completions", answer), web.get("/health", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
