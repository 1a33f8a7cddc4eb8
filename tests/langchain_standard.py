"""LangChain's own tests of a chat model, for the server at LANGCHAIN_SERVER; run by test_langchain.py.

What is not there yet is said here, and LangChain's tests skip it.
"""

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    """`ignore_eos` has a random model say something."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "base_url": os.environ["LANGCHAIN_SERVER"],
            "api_key": "unused",
            "max_tokens": 24,
            "temperature": 0,
            "max_retries": 0,
            "stream_usage": True,
            "extra_body": {"ignore_eos": True},
        }

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["reasoning_output", "cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> Any:
        return self._repeated(stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        return self._repeated(stream)

    def _repeated(self, stream: bool) -> Any:
        """The second answer to a question that fills blocks of the cache."""
        model = ChatOpenAI(**self.chat_model_params | {"streaming": stream})
        question = "Tell me about the tides, at some length and in great detail. " * 8
        model.invoke(question)
        message = model.invoke(question)
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        return message
