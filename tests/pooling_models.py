"""Tiny random models that make embeddings or give numbers for labels, and what transformers says of the same texts."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import SMALL_VOCABULARY, write_byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": SMALL_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
STEMS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "Camembert": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "DistilBert": {
        "vocab_size": SMALL_VOCABULARY,
        "dim": 64,
        "hidden_dim": 96,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 160,
    },
    "ModernBert": SIZES
    | {"local_attention": 16, "num_hidden_layers": 5, "cls_token_id": 1, "sep_token_id": 2},
    "Llama": DECODER,
    "Mistral": DECODER | {"sliding_window": 24},
    "Qwen2": DECODER,
    "Qwen3": DECODER,
    "Gemma": DECODER,
    "Gemma2": DECODER | {"sliding_window": 24, "query_pre_attn_scalar": 16},
    "Gemma3Text": DECODER | {"sliding_window": 24, "query_pre_attn_scalar": 16},
}
ENCODERS = ("Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "ModernBert")
DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text")


def make(folder: Path, stem: str, kind: str = "Model", **config: Any) -> Path:
    """A checkpoint of class STEMKIND with wide random weights, and the byte tokenizer."""
    torch.manual_seed(0)
    library: Any = transformers
    made = getattr(library, f"{stem}{kind}")(getattr(library, f"{stem}Config")(**(STEMS[stem] | config)))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            norm = "norm" in name.lower()
            parameter.normal_(1.0 if norm and name.endswith("weight") else 0.0, 0.1 if norm else 0.15)
    made.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def write_sentence_files(folder: Path, tokens: str, *, normalize: bool = True, **settings: Any) -> None:
    """What sentence-transformers writes beside a model that is pooled so."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": mode == tokens for mode in ("cls_token", "mean_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def ragged(seed: int = 5) -> list[list[int]]:
    """Token ids from 1 to 150 at a time, two of which begin alike; none is a padding token anywhere."""
    rng = random.Random(seed)
    made = [[rng.randrange(5, SMALL_VOCABULARY) for _ in range(n)] for n in (1, 2, 15, 16, 17, 40, 97, 150)]
    return [*made, made[6][:64] + made[2]]


class Reference:
    """transformers in float32, one text at a time."""

    def __init__(self, folder: Path, kind: str = "Model") -> None:
        library: Any = transformers
        auto = library.AutoModel if kind == "Model" else library.AutoModelForSequenceClassification
        self.model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def hidden(self, token_ids: Sequence[int], *, both_ways: bool = False) -> torch.Tensor:
        """[len(token_ids), hidden_size]; both_ways  lets every token see every other"""
        size = len(token_ids)
        given = {"attention_mask": torch.zeros(1, 1, size, size)} if both_ways else {}
        return self.model(torch.tensor([list(token_ids)]), **given).last_hidden_state[0]

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], segments: Sequence[int] | None = None) -> torch.Tensor:
        """[num_labels]"""
        given = {} if segments is None else {"token_type_ids": torch.tensor([list(segments)])}
        return self.model(torch.tensor([list(token_ids)]), **given).logits[0]


def assert_close(actual: Sequence[float], expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Within this share of the largest number expected."""
    assert len(actual) == len(expected)
    assert torch.isfinite(expected).all() and expected.abs().max() > 1e-3
    worst = float((torch.tensor(actual) - expected).abs().max() / expected.abs().max())
    assert worst <= tolerance, f"{worst:.2e}"
