"""Models that nobody publishes: the shapes of larger ones with random weights, and vLLM's 8-bit form of any of them.

    python make_models.py random qwen2.5-0.5b models/SmolLM2-135M-Instruct models/Qwen2.5-0.5B-random
    python make_models.py w8a8 models/Qwen2.5-0.5B-random models/Qwen2.5-0.5B-random-w8a8

Random weights are as fast as trained ones and need no licence. They come from a fixed seed; the vocabulary and the
tokenizer are SmolLM2's, so that `workload.py` fits. Needs torch, transformers and safetensors (the environment of this
project has them).
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

_TOKENS = {"vocab_size": 49_152, "tie_word_embeddings": True}
_TOKENS |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def qwen() -> tuple[PretrainedConfig, float]:
    """The shape of Qwen2.5-0.5B, and the base of its rotary embedding."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        architectures=["Qwen2ForCausalLM"],
        **_TOKENS,
    )
    return config, 1e6


def llama() -> tuple[PretrainedConfig, float]:
    """The shape of Llama-3.2-1B, and the base of its rotary embedding."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        architectures=["LlamaForCausalLM"],
        **_TOKENS,
    )
    return config, 5e5


SHAPES = {"qwen2.5-0.5b": qwen, "llama-3.2-1b": llama}


def make_random(shape: str, tokenizer: Path, out: Path) -> None:
    """Norms of one, everything else normal with a deviation of 0.02, in bfloat16."""
    config, rope_theta = SHAPES[shape]()
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(out)
    # Older readers look for these two names.
    written = json.loads((out / "config.json").read_text())
    written |= {"rope_theta": rope_theta, "torch_dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(written, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, out)


def make_w8a8(source: Path, out: Path) -> None:
    """int8 weights with a scale for each output; activations are rounded while running, a scale for each token."""
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(str(source / "model.safetensors"), "pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            weight = file.get_tensor(name)
            if re.search(r"layers\.\d+\..*_proj\.weight$", name):
                weight = weight.float()
                scale = weight.abs().amax(1, keepdim=True) / 127
                tensors[f"{name}_scale"] = scale.to(torch.bfloat16)
                weight = (weight / scale).round().clamp(-127, 127).to(torch.int8)
            tensors[name] = weight
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, out)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = compressed_tensors()
    (out / "config.json").write_text(json.dumps(config, indent=1))


def compressed_tensors() -> dict[str, Any]:
    """The scheme in the words of the compressed-tensors format."""
    eight: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = eight | {"strategy": "channel", "dynamic": False, "observer": "minmax"}
    activations = eight | {"strategy": "token", "dynamic": True, "observer": None}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    scheme: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    scheme |= {"quantization_status": "compressed", "ignore": ["lm_head"]}
    return scheme | {"config_groups": {"group_0": group | {"output_activations": None}}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    random = kinds.add_parser("random", help="a shape with random weights")
    random.add_argument("shape", choices=list(SHAPES))
    random.add_argument("tokenizer", type=Path, help="folder of SmolLM2")
    random.add_argument("out", type=Path)
    w8a8 = kinds.add_parser("w8a8", help="8 bits for vLLM")
    w8a8.add_argument("source", type=Path)
    w8a8.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.kind == "random":
        make_random(given.shape, given.tokenizer, given.out)
    else:
        make_w8a8(given.source, given.out)


if __name__ == "__main__":
    main()
