"""The comparison: rounds in which every engine does the same work, one after the other, beside readings of memory.

    python run.py peers.toml

A round goes through the modes and, in each, through the engines in the order of the configuration (A B C, then the
next mode); then come the servers. The next round starts over, so a drift of the machine hits all alike. Each engine
runs in a process of its own, alone. Every result is a line of JSON, appended to the file that the configuration names;
`table.py` reads it. What fails is a line, too, and the round goes on.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config
import serve_load
import servers
from engines import Settings, adapter

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Round:
    """One round of a comparison, and where its lines go."""

    plan: config.Config
    number: int

    def note(self, kind: str, **figures: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"kind": kind, "model": self.plan.model, "round": self.number, "at": at} | figures
        with self.plan.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def run(self) -> None:
        self.bandwidth()
        for mode in self.plan.modes:
            timed = [engine for engine in self.plan.engines if mode in engine.models and engine.cases]
            for engine in timed:
                self.measure(engine, mode)
            if timed:
                self.bandwidth()
        if self.plan.served is not None:
            self.serve(self.plan.served)
            self.bandwidth()

    def bandwidth(self) -> None:
        command = [sys.executable, str(HERE / "bandwidth.py"), "--threads", str(self.plan.threads)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        self.note("bandwidth", **json.loads(result.stdout))

    def settings(self, engine: config.EngineConfig, mode: str) -> Settings:
        threads, cache = self.plan.threads, self.plan.cache_gib
        return Settings(engine.program, engine.models[mode], mode, threads, cache, engine.options)

    def measure(self, engine: config.EngineConfig, mode: str) -> None:
        """Run `measure.py` in the engine's environment."""
        say(f"round {self.number}  {mode}  {engine.name}")
        settings = self.settings(engine, mode)
        # llama.cpp is a server and has no Python of its own.
        interpreter = sys.executable if engine.name == "llama_cpp" else engine.program
        command = [interpreter, str(HERE / "measure.py"), engine.name, "--program", engine.program]
        command += ["--model", settings.model, "--model-name", self.plan.model, "--mode", mode]
        command += ["--threads", str(settings.threads), "--cache-gib", str(settings.cache_gib)]
        command += ["--cases", ",".join(engine.cases), "--repeats", str(self.plan.repeats)]
        command += ["--offline-requests", str(self.plan.offline_requests)]
        command += ["--options", json.dumps(engine.options), "--round", str(self.number)]
        command += ["--out", str(self.plan.results)]
        failure = run_alone(command, environment(engine, settings), self.plan.timeout_s)
        if failure is not None:
            self.note("failure", mode=mode, engine=engine.name, error=failure)

    def serve(self, served: config.ServedConfig) -> None:
        """Load on every engine's server, and then cold starts of each."""
        engines = [engine for engine in self.plan.engines if served.mode in engine.models]
        for kind, times in (("served", 1), ("cold", served.cold_starts)):
            for _ in range(times):
                for engine in engines:
                    say(f"round {self.number}  {kind}  {engine.name}")
                    self.serve_one(kind, engine, served)

    def serve_one(self, kind: str, engine: config.EngineConfig, served: config.ServedConfig) -> None:
        settings = self.settings(engine, served.mode)
        port = served.port + self.plan.engines.index(engine)
        about: dict[str, Any] = {"mode": served.mode, "engine": engine.name}
        command = adapter(engine.name).serve(settings, port)
        try:
            with servers.running(command, environment(engine, settings), port) as server:
                if kind == "cold":
                    self.note(kind, **about, cold_start_s=round(server.seconds_to_first_token(), 2))
                    return
                ready = round(server.seconds_to_health(), 2)
                load = serve_load.load(port, "m", list(served.rates), served.requests)
                figures = asyncio.run(asyncio.wait_for(load, self.plan.timeout_s))
                rss = server.peak_rss_mb()
                for one in figures:
                    self.note(kind, **about, **one, ready_s=ready, peak_rss_mb=rss)
        except Exception as error:
            self.note("failure", **about, part=kind, error=repr(error)[:400])


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def environment(engine: config.EngineConfig, settings: Settings) -> dict[str, str]:
    """The caller's variables without OMP_*, the adapter's, and those of the configuration, which win."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return kept | offline | adapter(engine.name).environment(settings) | engine.environment


def run_alone(command: list[str], variables: dict[str, str], timeout: float) -> str | None:
    """Run to the end, and end what is left of its session. Returns the last words of what failed, else None."""
    # A file and not a pipe: a grandchild that keeps a pipe open would be waited for.
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True
        )
        try:
            what = f"ended with {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            what = f"took more than {timeout:g} s"
        finally:
            servers.end(process)
        words.seek(0)
        return None if what == "ended with 0" else f"{what}: {words.read().strip()[-400:]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="TOML file; see README.md")
    parser.add_argument("--first-round", type=int, default=1, help="its number, when results are continued")
    given = parser.parse_args()
    try:
        plan = config.read(given.configuration)
    except config.ConfigurationError as error:
        parser.exit(2, f"run.py: {error}\n")
    # Asked to end, it ends what it started: engines run in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for number in range(given.first_round, given.first_round + plan.rounds):
        Round(plan, number).run()


if __name__ == "__main__":
    main()
