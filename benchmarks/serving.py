"""What HTTP costs: tokens per second of the same requests offline and as concurrent streams of a server, in turn.

    OMP_PROC_BIND=true OMP_PLACES=cores python benchmarks/serving.py --streams 32

The server is `llm serve` in processes of its own, on loopback. The client shares its cores, and looks fifty times a
second at what has come: reading each event as it comes is a client's own affair, and usually elsewhere. Both engines
have the same settings, and the idle one waits. Medians of several rounds, and their ratio in each.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from core import LLM, SamplingParams

PROMPT = 64

LOOK_S = 0.02
"""Seconds; the client knows of the end so late, at most."""


def main() -> None:
    given = _arguments()
    cores = os.sched_getaffinity(0)
    engine = ["--dtype", given.dtype, "--kv-cache-memory", "1GiB"]
    command = [sys.executable, "-m", "cli", "serve", given.model, "--port", "0", "--no-access-log", *engine]
    # Before there are threads here: a process that is started from a thread which is bound to a core stays on it.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        with LLM(given.model, dtype=given.dtype, kv_cache_memory="1GiB") as llm:
            rounds = [_round(llm, url, cores, given) for _ in range(given.rounds + 1)][
                1:
            ]  # the first warms up
    finally:
        server.terminate()
        server.wait()
    offline, served = ([each[i] for each in rounds] for i in range(2))
    ratios = [b / a for a, b in rounds]
    result = {
        "model": given.model,
        "streams": given.streams,
        "tokens": given.tokens,
        "offline_tok_s": round(statistics.median(offline), 1),
        "served_tok_s": round(statistics.median(served), 1),
        "served_share": round(statistics.median(ratios), 3),
        "shares": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(result))


def _round(llm: LLM, url: str, cores: set[int], given: argparse.Namespace) -> tuple[float, float]:
    """Tokens per second offline, and served, of prompts that nobody has seen. cores  where the client may run"""
    total = given.streams * given.tokens
    params = SamplingParams(temperature=0, max_tokens=given.tokens, ignore_eos=True)
    prompts = _prompts(given.streams)
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    offline = total / (time.perf_counter() - started)
    prompts, bound = _prompts(given.streams), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    started = time.perf_counter()
    _read_all(url, prompts, given.tokens)
    served = total / (time.perf_counter() - started)
    os.sched_setaffinity(0, bound)
    return offline, served


def _prompts(count: int) -> list[list[int]]:
    return [[random.randrange(100, 40_000) for _ in range(PROMPT)] for _ in range(count)]


def _read_all(url: str, prompts: list[list[int]], tokens: int) -> None:
    """A stream for each prompt, read to its end."""
    waiting = {_asked(url, prompt, tokens): bytearray() for prompt in prompts}
    while waiting:
        time.sleep(LOOK_S)
        for stream, received in list(waiting.items()):
            if _has_ended(stream, received):
                del waiting[stream]
                stream.close()
                if not received.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in received:
                    raise SystemExit(f"the server did not answer: {received[:500]!r}")


def _asked(url: str, prompt: list[int], tokens: int) -> socket.socket:
    """A connection on which a request has been sent."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    raw, address = json.dumps(body | {"stream": True}).encode(), urlsplit(url)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(raw)}\r\n"
    stream = socket.create_connection((address.hostname, address.port))
    stream.sendall(head.encode() + b"content-type: application/json\r\nconnection: close\r\n\r\n" + raw)
    stream.setblocking(False)
    return stream


def _has_ended(stream: socket.socket, received: bytearray) -> bool:
    """Take what has come; True when nothing more will."""
    while True:
        try:
            piece = stream.recv(1 << 20)
        except BlockingIOError:
            return False
        if not piece:
            return True
        received += piece


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
