"""Models that run through the code of transformers: what they compute, what is refused, and who chooses."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import check, prompts, tiny_config, write_tiny
from fallback_models import FALLBACK, FAST, REFUSED
from safetensors.torch import load_file, save_file

from core import LLM, SamplingParams
from core.discovery import load_plugins
from core.errors import BadCheckpoint, ConfigError, ModelError, UnsupportedArchitecture

SLOW = [name for name in FALLBACK if name not in FAST]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("fallback"), request.param, FALLBACK[request.param])


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("made", FAST, indirect=True)
def test_an_undeclared_architecture_computes_what_transformers_computes(made: Path, platform: str) -> None:
    check(made, platform, "auto")


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("made", SLOW, indirect=True)
def test_every_other_architecture_of_the_list_does(made: Path, platform: str) -> None:
    check(made, platform, "auto")


def test_the_list_has_sixty_architectures_that_nobody_declares() -> None:
    undeclared = FALLBACK.keys() - load_plugins().architectures.keys()
    assert len(undeclared) >= 60
    assert undeclared == set(FALLBACK)


def test_what_the_documentation_says_was_tried_is_this_list() -> None:
    results = json.loads((Path(__file__).parent.parent / "docs" / "models.json").read_text())
    ours = {name for name, row in results["tried"].items() if row["implementation"] == "transformers"}
    assert ours == set(FALLBACK)
    assert results["refused"].keys() == REFUSED.keys()


def claim(folder: Path, config: Mapping[str, Any], trusted: bool = False) -> Any:
    return load_plugins().fallbacks["transformers"].claim(folder, config, trusted)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_paged_attention_does_not_do_is_refused_before_a_weight_is_read(
    tmp_path: Path, architecture: str
) -> None:
    changes, reason = REFUSED[architecture]
    config = tiny_config(architecture, changes).to_dict() | {"architectures": [architecture]}
    with pytest.raises(UnsupportedArchitecture, match=reason):
        claim(tmp_path, config)


def described(architecture: str, folder: Path, **changes: Any) -> Any:
    config = tiny_config(architecture, changes).to_dict() | {"architectures": [architecture]}
    return claim(folder, config).describe(config)


def test_layers_are_described_as_their_code_asks_for_attention(tmp_path: Path) -> None:
    gemma = described("VaultGemmaForCausalLM", tmp_path, query_pre_attn_scalar=16)
    assert [layer.sliding_window for layer in gemma.layers] == [20, None]
    assert {layer.soft_cap for layer in gemma.layers} == {50.0}
    assert (gemma.context, gemma.vocab_size, gemma.hidden_size) == (512, 320, 64)
    latent = described("MiniCPM3ForCausalLM", tmp_path, num_key_value_heads=4)
    assert {(layer.head_dim, layer.scale) for layer in latent.layers} == {(24, 24**-0.5)}
    assert len(described("DiffLlamaForCausalLM", tmp_path).layers) == 4


def test_a_window_that_only_the_mask_has_is_seen(tmp_path: Path) -> None:
    assert {layer.sliding_window for layer in described("PhimoeForCausalLM", tmp_path).layers} == {20}


def test_positions_behind_a_row_for_padding_cost_the_context_those_rows(tmp_path: Path) -> None:
    assert described("RobertaForCausalLM", tmp_path, pad_token_id=1).context == 512 - 2


def test_frequencies_that_would_change_with_the_step_are_those_of_short_sequences(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    assert described("Phi3ForCausalLM", tmp_path, **changes).context == 64


def engine(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), platform="cpu", skip_tokenizer_init=True, **{"dtype": "float32", **settings})


def test_the_user_chooses_and_the_ledger_says_who_runs(tiny_llama: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    answers: list[list[list[int]]] = []
    details: list[str] = []
    for model_impl in ("auto", "native", "transformers"):
        with engine(tiny_llama, model_impl=model_impl) as llm:
            outputs = llm.generate(prompts(), params, use_tqdm=False)
            answers.append([output.outputs[0].token_ids for output in outputs])
            ledger = llm.engine.ledger.as_dicts()
        details += [line["detail"] for line in ledger if line["what"] == "architecture"]
    assert answers[0] == answers[1] == answers[2]
    assert details[0] == details[1] == "llama"
    assert "transformers' own code" in details[2]


def test_two_such_models_in_a_process_keep_to_themselves(tiny_llama: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path, "ArceeForCausalLM", {})
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    with engine(tiny_llama, model_impl="transformers") as first, engine(other) as second:
        alone = [
            first.generate(prompts(), params, use_tqdm=False),
            second.generate(prompts(), params, use_tqdm=False),
        ]
        again = [
            first.generate(prompts(), params, use_tqdm=False),
            second.generate(prompts(), params, use_tqdm=False),
        ]
    tokens = [[output.outputs[0].token_ids for output in outputs] for outputs in (*alone, *again)]
    assert tokens[:2] == tokens[2:]
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_linear_layers_are_quantised_while_they_are_loaded(tiny_llama: Path, quantization: str) -> None:
    with engine(tiny_llama, model_impl="transformers", dtype="bfloat16", quantization=quantization) as llm:
        (weights,) = [line for line in llm.engine.ledger.as_dicts() if line["what"] == "weights"]
        assert f"as {quantization}" in weights["detail"]
        assert llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)


def test_a_made_up_checkpoint_will_do_for_measuring(tmp_path: Path) -> None:
    config = tiny_config("AfmoeForCausalLM", {}).to_dict() | {"architectures": ["AfmoeForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    params = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
    with engine(tmp_path, load_format="dummy") as llm:
        assert len(llm.generate([[5, 6, 7]], params, use_tqdm=False)[0].outputs[0].token_ids) == 4


def test_embeddings_of_such_a_model_are_its_hidden_states(tmp_path: Path) -> None:
    import transformers

    folder = write_tiny(tmp_path, "ArceeForCausalLM", {})
    with engine(folder, task="embed") as llm:
        (output,) = llm.embed([[5, 6, 7, 8]])
    model = transformers.ArceeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model.model(torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0, -1]
    expected = expected / expected.norm()
    assert torch.allclose(torch.tensor(output.outputs.embedding), expected, atol=1e-5)


# Refusals


def rewritten(folder: Path, into: Path, **config: Any) -> Path:
    """A copy of a model whose config says something else."""
    if into != folder:
        shutil.copytree(folder, into, dirs_exist_ok=True)
    written = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(written | config))
    return into


def test_an_unknown_architecture_names_the_closest_and_the_fallbacks_reason(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = rewritten(tiny_llama, tmp_path, architectures=["LlammaForCausalLM"])
    with pytest.raises(UnsupportedArchitecture) as raised:
        engine(folder)
    message = str(raised.value)
    assert "LlamaForCausalLM" in message
    assert "transformers: LlammaForCausalLM is unknown to it" in message


def test_native_refuses_what_only_the_fallback_runs(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "ArceeForCausalLM", {})
    with pytest.raises(UnsupportedArchitecture, match="ArceeForCausalLM, which no plugin declares"):
        engine(folder, model_impl="native")


def test_an_implementation_that_nothing_is_called_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="accepted: auto, native, transformers"):
        engine(tiny_llama, model_impl="vllm")


def test_an_encoder_decoder_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = rewritten(
        tiny_llama, tmp_path, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True
    )
    with pytest.raises(UnsupportedArchitecture, match="reads with an encoder"):
        engine(folder)


def test_a_config_that_transformers_does_not_accept_is_one_error(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "ArceeForCausalLM", {})
    with pytest.raises(ConfigError, match="hidden_size"):
        engine(rewritten(folder, folder, hidden_size="many"))


def test_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(UnsupportedArchitecture, match="reads no GGUF"):
        claim(file, {"architectures": ["ArceeForCausalLM"]})


def test_weights_that_disagree_with_the_config_are_one_error(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "ArceeForCausalLM", {})
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    weights["model.norm.weight"] = torch.zeros(3)
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint) as raised:
        engine(folder)
    message = str(raised.value)
    assert "1 missing: lm_head.weight" in message
    assert "1 misshaped: model.norm.weight is [3], expected [64]" in message
    assert "1 left over: model.layers.7.mlp.up_proj.weight" in message


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"is an adapter.*org/base"):
        engine(tmp_path)


CODE = """
from transformers import ArceeConfig, ArceeForCausalLM


class OwnConfig(ArceeConfig):
    model_type = "own"


class OwnForCausalLM(ArceeForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that comes with its own code; what is run of it is cached beside it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = write_tiny(tmp_path / "model", "ArceeForCausalLM", {})
    (folder / "modeling_own.py").write_text(CODE)
    references = {
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoConfig": "modeling_own.OwnConfig",
    }
    return rewritten(folder, folder, architectures=["OwnForCausalLM"], model_type="own", auto_map=references)


def test_code_of_a_checkpoint_is_not_run_unless_it_is_trusted(with_code: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"modeling_own\.OwnForCausalLM.*trust_remote_code"):
        engine(with_code)


def test_code_of_another_repository_is_never_run(with_code: Path) -> None:
    """`trust_remote_code` trusts the model that was named, and no other."""
    elsewhere = {"AutoModelForCausalLM": "org/other--modeling_own.OwnForCausalLM"}
    rewritten(with_code, with_code, auto_map=elsewhere)
    with pytest.raises(UnsupportedArchitecture, match=r"its code is elsewhere.*org/other--modeling_own"):
        engine(with_code, trust_remote_code=True)


def test_code_that_is_trusted_runs(with_code: Path) -> None:
    params = SamplingParams(max_tokens=4, detokenize=False)
    with engine(with_code, trust_remote_code=True) as llm:
        assert llm.generate([[5, 6, 7]], params, use_tqdm=False)[0].outputs[0].token_ids


# What a trial finds


def test_tokens_that_meet_outside_of_attention_are_found_before_anything_is_served(tmp_path: Path) -> None:
    """A convolution over time, say, which continuous batching would run across sequences."""
    from transformers import ArceeForCausalLM

    from models.fallback.attention import Paged
    from models.fallback.model import TransformersModel

    model = ArceeForCausalLM._from_config(
        tiny_config("ArceeForCausalLM", {}), attn_implementation="core_paged"
    )

    def shifted(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.roll(1, dims=1)

    with torch.inference_mode():
        TransformersModel(model.eval(), Paged(()), 0)
        model = ArceeForCausalLM._from_config(model.config, attn_implementation="core_paged").eval()
        model.model.layers[0].mlp.register_forward_hook(shifted)
        with pytest.raises(UnsupportedArchitecture, match="mixes tokens elsewhere"):
            TransformersModel(model, Paged(()), 0)
        model = ArceeForCausalLM._from_config(model.config, attn_implementation="core_paged").eval()
        with pytest.raises(UnsupportedArchitecture, match="counts positions"):
            TransformersModel(model, Paged(()), 1)
