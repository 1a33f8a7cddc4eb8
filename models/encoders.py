"""Encoders, whose tokens see the whole text: BERT (MiniLM too), RoBERTa and XLM-RoBERTa, DistilBERT, ModernBERT.

Each as it is, for embeddings, and with a classifier; cross-encoders are classifiers of two texts. A checkpoint that was
trained to fill in masked words gives embeddings as well, and that head is left where it is. What the embedding is made
of is said by sentence-transformers' files; without them it is the first token's hidden state.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from core.contracts.attention import AttentionShape
from core.contracts.model import Architecture, ModelDescription
from core.layers.reading import Config, Reading, decoder
from core.layers.settings import (
    AttentionSettings,
    ClassifierSettings,
    LayerSettings,
    NormSettings,
    PositionSettings,
    RotarySettings,
)
from models.pooling import classifies, embeds

Describe = Callable[[Reading, str], ModelDescription]
"""(config, prefix of every name) -> the model without its pooling."""

_BERT = {
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


def _norm(read: Reading, name: str, *, eps: str = "layer_norm_eps", bias: bool = True) -> NormSettings:
    return read.norm(name, eps=eps, kind="layer", bias=bias)


def _shape(read: Reading, window: int | None = None) -> AttentionShape:
    return read.shape(causal=False, sliding_window=window)


def _bert(read: Reading, prefix: str, *, padding: int | None = None) -> ModelDescription:
    """padding  id of the token whose position comes before that of the first, as in RoBERTa"""
    read.expect("position_embedding_type", "absolute", "adds a vector for each position")
    read.expect("is_decoder", False, "sees the whole text")
    rows, offset = read.positive("max_position_embeddings"), 0 if padding is None else padding + 1

    def layer(i: int) -> LayerSettings:
        name = f"{prefix}encoder.layer.{i}"
        return read.layer(
            name,
            mixer=AttentionSettings(
                qkv=tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value")),
                output=f"{name}.attention.output.dense",
                qkv_bias=True,
                output_bias=True,
            ),
            mlp=read.mlp(
                name, up=(f"{name}.intermediate.dense",), down=f"{name}.output.dense", gated=False, bias=True
            ),
            input_norm=_norm(read, f"{name}.attention.output.LayerNorm"),
            mlp_norm=_norm(read, f"{name}.output.LayerNorm"),
            after=True,
        )

    described = read.describe(
        layer,
        lambda i: _shape(read),
        embedding=f"{prefix}embeddings.word_embeddings",
        positions=PositionSettings(name=f"{prefix}embeddings.position_embeddings", rows=rows, offset=offset),
        segments=PositionSettings(
            name=f"{prefix}embeddings.token_type_embeddings", rows=read.positive("type_vocab_size")
        ),
        embedding_norm=_norm(read, f"{prefix}embeddings.LayerNorm"),
        norm=None,
    )
    return replace(described, context=rows - offset)


def _roberta(read: Reading, prefix: str) -> ModelDescription:
    return _bert(read, prefix, padding=int(read.value("pad_token_id", 1)))


def _distilbert(read: Reading, prefix: str) -> ModelDescription:
    def layer(i: int) -> LayerSettings:
        name = f"{prefix}transformer.layer.{i}"
        return read.layer(
            name,
            mixer=AttentionSettings(
                qkv=tuple(f"{name}.attention.{letter}_lin" for letter in "qkv"),
                output=f"{name}.attention.out_lin",
                qkv_bias=True,
                output_bias=True,
            ),
            mlp=read.mlp(name, up=(f"{name}.ffn.lin1",), down=f"{name}.ffn.lin2", gated=False, bias=True),
            input_norm=_norm(read, f"{name}.sa_layer_norm"),
            mlp_norm=_norm(read, f"{name}.output_layer_norm"),
            after=True,
        )

    return read.describe(
        layer,
        lambda i: _shape(read),
        embedding=f"{prefix}embeddings.word_embeddings",
        positions=PositionSettings(name=f"{prefix}embeddings.position_embeddings", rows=read.context),
        embedding_norm=_norm(read, f"{prefix}embeddings.LayerNorm"),
        norm=None,
    )


def _modernbert(read: Reading, prefix: str) -> ModelDescription:
    """Norms before each half, a gated MLP, rotation, and a window in all layers but every third."""
    bias = read.flag("norm_bias")
    windows = _modernbert_windows(read)
    rotations = {near: _modernbert_rotary(read, near) for near in (False, True)}

    def norm(name: str) -> NormSettings:
        return _norm(read, f"{prefix}{name}", eps="norm_eps", bias=bias)

    def layer(i: int) -> LayerSettings:
        name = f"{prefix}layers.{i}"
        return read.layer(
            name,
            mixer=read.attention(
                name,
                qkv=(f"{name}.attn.Wqkv",),
                output=f"{name}.attn.Wo",
                rotary=rotations[windows[i] is not None],
            ),
            mlp=read.mlp(
                name,
                up=(f"{name}.mlp.Wi",),
                down=f"{name}.mlp.Wo",
                activation=read.activation("hidden_activation"),
            ),
            input_norm=None if i == 0 else norm(f"layers.{i}.attn_norm"),
            mlp_norm=norm(f"layers.{i}.mlp_norm"),
        )

    return read.describe(
        layer,
        lambda i: _shape(read, windows[i]),
        embedding=f"{prefix}embeddings.tok_embeddings",
        embedding_norm=norm("embeddings.norm"),
        norm=norm("final_norm"),
    )


def _modernbert_windows(read: Reading) -> list[int | None]:
    interval, window = read.positive("global_attn_every_n_layers"), read.positive("local_attention")
    kinds = read.value("layer_types")
    near = [
        i % interval != 0 if kinds is None else kinds[i] == "sliding_attention"
        for i in range(read.num_layers)
    ]
    return [window if seen_near else None for seen_near in near]


def _modernbert_rotary(read: Reading, near: bool) -> RotarySettings:
    kind, key, theta = (
        ("sliding_attention", "local_rope_theta", 10_000.0)
        if near
        else ("full_attention", "global_rope_theta", 160_000.0)
    )
    given = (read.value("rope_parameters") or {}).get(kind) or {}
    return read.rotary(block={"rope_theta": read.number(key, theta), **given})


def _family(
    stem: str,
    base: str,
    describe: Describe,
    classifier: Callable[[Reading, str], tuple[ClassifierSettings, str]],
    *,
    defaults: Config,
    keys: Mapping[str, str] | None = None,
    unused: tuple[str, ...],
) -> list[Architecture]:
    """STEMModel, STEMForMaskedLM and STEMForSequenceClassification.

    base        prefix of the names of all weights but the heads'
    classifier  (config, prefix) -> the classifier, and whose hidden states are pooled for it
    """

    def embedder(read: Reading) -> ModelDescription:
        described = describe(read, base)
        settings = replace(described.settings, prefix=base, unused=unused)
        return replace(described, settings=settings, pooling=embeds(described.hidden_size, "first"))

    def labeller(read: Reading) -> ModelDescription:
        described, (head, tokens) = describe(read, base), classifier(read, base)
        pooler = f"{base}pooler."  # which some were saved with, and not all use
        left = () if head.dense is not None and head.dense.startswith(pooler) else (pooler,)
        settings = replace(described.settings, prefix=base, classifier=head, unused=left)
        return replace(described, settings=settings, pooling=classifies(read, tokens))

    made: dict[str, Callable[[Reading], ModelDescription]] = {
        f"{stem}Model": embedder,
        f"{stem}ForMaskedLM": embedder,
        f"{stem}ForSequenceClassification": labeller,
    }
    return [
        decoder(name, "encoder", described, defaults=defaults, keys=keys) for name, described in made.items()
    ]


def _bert_classifier(read: Reading, prefix: str) -> tuple[ClassifierSettings, str]:
    return ClassifierSettings(output="classifier", dense=f"{prefix}pooler.dense"), "first"


def _roberta_classifier(read: Reading, prefix: str) -> tuple[ClassifierSettings, str]:
    return ClassifierSettings(output="classifier.out_proj", dense="classifier.dense"), "first"


def _distilbert_classifier(read: Reading, prefix: str) -> tuple[ClassifierSettings, str]:
    return ClassifierSettings(output="classifier", dense="pre_classifier", activation="relu"), "first"


def _modernbert_classifier(read: Reading, prefix: str) -> tuple[ClassifierSettings, str]:
    settings = ClassifierSettings(
        output="classifier",
        dense="head.dense",
        dense_bias=read.flag("classifier_bias"),
        activation=read.activation("classifier_activation"),
        norm=_norm(read, "head.norm", eps="norm_eps", bias=read.flag("norm_bias")),
    )
    return settings, "mean" if read.value("classifier_pooling") == "mean" else "first"


_ROBERTA: dict[str, Any] = {
    "defaults": _BERT,
    "unused": ("roberta.pooler.", "lm_head."),
}
ALL = [
    *_family("Bert", "bert.", _bert, _bert_classifier, defaults=_BERT, unused=("bert.pooler.", "cls.")),
    *_family("Roberta", "roberta.", _roberta, _roberta_classifier, **_ROBERTA),
    *_family("XLMRoberta", "roberta.", _roberta, _roberta_classifier, **_ROBERTA),
    *_family("Camembert", "roberta.", _roberta, _roberta_classifier, **_ROBERTA),
    *_family(
        "DistilBert",
        "distilbert.",
        _distilbert,
        _distilbert_classifier,
        defaults={**_BERT, "activation": "gelu"},
        keys=_DISTILBERT_KEYS,
        unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
    ),
    *_family(
        "ModernBert",
        "model.",
        _modernbert,
        _modernbert_classifier,
        defaults={
            "norm_eps": 1e-5,
            "hidden_activation": "gelu",
            "classifier_activation": "gelu",
            "max_position_embeddings": 8192,
            "global_attn_every_n_layers": 3,
            "local_attention": 128,
        },
        unused=("head.", "decoder."),
    ),
]
