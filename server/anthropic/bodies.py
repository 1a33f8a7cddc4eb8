"""The bodies of Anthropic's routes, and the conversation in them as the chat template wants it."""

from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from server.fields import Body
from server.sampling import SamplingBody

NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": ({}, {"edits": []}),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_config": ({},),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "tools": ([],),
}
"""Fields that are not supported, and the values with which they ask for nothing."""

ACCEPTED_WITHOUT_EFFECT = ("metadata", "cache_control", "user_profile_id")
"""Labels for a provider's books, and hints at what to cache: here every prompt's beginning is."""


def _as_blocks(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


class TextBlock(Body):
    """A part of a turn. What clients add when they send an answer back says nothing here."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


Blocks = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class ConversationBody(Body):
    """POST /v1/messages/count_tokens, and what every message has, too."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = NOT_SUPPORTED
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ACCEPTED_WITHOUT_EFFECT

    model: str | None = None
    system: Blocks | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]

    @property
    def continues(self) -> bool:
        """Whether the answer continues what the assistant has begun to say."""
        return self.messages[-1].role == "assistant"

    @property
    def template_arguments(self) -> dict[str, bool]:
        return {"add_generation_prompt": not self.continues, "continue_final_message": self.continues}

    def for_template(self) -> list[dict[str, Any]]:
        """The system's words first, then the turns; neighbours of the same role are one turn."""
        said = [("system", block.text) for block in self.system or ()]
        said += [(turn.role, block.text) for turn in self.messages for block in turn.content]
        return [
            {"role": role, "content": "\n".join(text for _, text in together)}
            for role, together in groupby(said, key=lambda one: one[0])
        ]


class MessagesBody(ConversationBody, SamplingBody):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
