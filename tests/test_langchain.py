"""LangChain against a live server: its standard tests of chat models, and its class for plain completions.

Those tests run in a process of their own, because the pytest plugins that they need get in the way of others.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from live_server import NAME

pytest_plugins = ("server_fixtures",)

STANDARD = Path(__file__).with_name("langchain_standard.py")
ABSENT = ("tool", "structured", "json_mode", "inputs", "agent_loop", "stream_time", "override")
"""Parts of the names of tests of what is not supported yet, or needs recorded answers."""


def test_langchains_standard_tests_of_chat_models_pass(url: str, tmp_path: Path) -> None:
    settings, report = tmp_path / "pytest.ini", tmp_path / "report.xml"
    settings.write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_test_loop_scope = session\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "-p", "no:cacheprovider"]

    ran = subprocess.run(
        [*command, f"--junitxml={report}", str(STANDARD)],
        env=os.environ | {"LANGCHAIN_SERVER": f"{url}/v1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert ran.returncode == 0, ran.stdout[-4000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {case.get("name", "") for case in cases if case.find("skipped") is not None}
    assert len(cases) - len(skipped) >= 17
    assert {name for name in skipped if not any(part in name for part in ABSENT)} == set()


@pytest.fixture
def connected(url: str) -> Iterator[dict[str, Any]]:
    """What LangChain's classes need to know. Their own connections would never be closed."""
    with httpx.Client(timeout=60) as http:
        named = {"model": NAME, "base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0}
        yield named | {"http_client": http, "extra_body": {"ignore_eos": True}}


def test_a_conversation_has_an_answer_with_what_it_cost(connected: dict[str, Any]) -> None:
    model = ChatOpenAI(**connected, temperature=0, max_tokens=12, seed=1, logprobs=True, top_logprobs=2)
    answer = model.invoke(
        [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("?")]
    )

    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == NAME
    assert answer.response_metadata["system_fingerprint"].startswith("fp_")
    assert len(answer.response_metadata["logprobs"]["content"]) == 12
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] == 12


def test_a_completion_goes_on_with_the_text(connected: dict[str, Any]) -> None:
    model = OpenAI(**connected, temperature=0, max_tokens=12)

    whole = model.invoke("Once upon a time")

    assert "".join(model.stream("Once upon a time")) == whole != ""
    assert model.batch(["Once upon a time"] * 3) == [whole] * 3


def test_what_is_not_supported_is_an_error_and_not_ignored(connected: dict[str, Any]) -> None:
    model = ChatOpenAI(**connected).bind(tools=[{"type": "function", "function": {"name": "f"}}])

    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        model.invoke("Hello")
