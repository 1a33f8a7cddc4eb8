"""Which weights are loaded: those that are there, those of a named format, or random ones."""

from pathlib import Path

import pytest

from core import LLM, SamplingParams
from core.conformance.tiny import write_tiny_model
from core.errors import ConfigError


def test_dummy_weights_need_no_more_than_a_config(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "model.safetensors").unlink()
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    answers: list[list[int]] = []
    for quantization in ("none", "none", "int8"):
        with LLM(
            str(folder),
            platform="cpu",
            load_format="dummy",
            quantization=quantization,
            skip_tokenizer_init=True,
        ) as llm:
            (output,) = llm.generate([[5, 6, 7]], params, use_tqdm=False)
            answers.append(list(output.outputs[0].token_ids))

    assert [len(answer) for answer in answers] == [8, 8, 8]
    assert answers[0] == answers[1], "a weight differs from one load to the next"


@pytest.mark.parametrize(
    ("load_format", "said"),
    [("gguf", "holds safetensors"), ("pt", "accepted: auto, safetensors, gguf, dummy")],
)
def test_a_load_format_that_is_not_there_is_refused(load_format: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        LLM(
            str(write_tiny_model(tmp_path)), platform="cpu", load_format=load_format, skip_tokenizer_init=True
        )
