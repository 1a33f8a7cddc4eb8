"""llama.cpp: its llama-server, over its own /completion, which takes and returns token ids.

The model is a GGUF file, the program is the server. Options: `slots`, the requests that may run at once (32);
`context`, the tokens that they share (40960); `flags`, further words for the server.
"""

import asyncio
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import client

from engines import Settings, only

PORT = 18_081
PATIENCE_S = 120.0


def environment(settings: Settings) -> dict[str, str]:
    """None: the server makes and places its threads itself."""
    return {}


def serve(settings: Settings, port: int) -> list[str]:
    options = {"slots": 32, "context": 40_960, "flags": ""}
    options |= only(settings.options, "slots", "context", "flags")
    threads = str(settings.threads)
    command = [settings.program, "-m", settings.model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(options["slots"]), "-c", str(options["context"]), "-kvu"]
    command += ["-t", threads, "-tb", threads, "-b", "2048", "-ub", "512", "--no-webui", "-fa", "on"]
    return command + shlex.split(options["flags"])


class _Engine:
    def __init__(self, settings: Settings) -> None:
        if client.answers(PORT):
            raise SystemExit(f"port {PORT} is taken; llama-server needs it")
        report = subprocess.run([settings.program, "--version"], capture_output=True, text=True, check=False)
        lines = (report.stdout + report.stderr).splitlines()
        self.version = next((line for line in lines if line.startswith("version")), "")
        quiet = subprocess.DEVNULL
        self._server = subprocess.Popen(serve(settings, PORT), stdout=quiet, stderr=quiet)
        end = time.perf_counter() + PATIENCE_S
        while not asyncio.run(client.healthy(PORT)):
            if self._server.poll() is not None or time.perf_counter() > end:
                self.close()
                raise SystemExit(f"llama-server did not start: {shlex.join(serve(settings, PORT))}")
            time.sleep(0.02)

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        return asyncio.run(self._generate(prompts, num_new))

    async def _generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        return await asyncio.gather(*(self._ask(prompt, num_new) for prompt in prompts))

    async def _ask(self, prompt: list[int], num_new: int) -> list[int]:
        body: dict[str, Any] = {"prompt": prompt, "n_predict": num_new, "ignore_eos": True}
        body |= {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
        body |= {"cache_prompt": True, "return_tokens": True}
        answer = await client.post(PORT, "/completion", body)
        return answer.get("tokens") or []

    def peak_rss_mb(self) -> int:
        status = Path(f"/proc/{self._server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


def load(settings: Settings) -> _Engine:
    return _Engine(settings)
