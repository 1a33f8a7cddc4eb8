"""Every family of encoders, and decoders that are pooled, against transformers on tiny random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pooling_models import (
    DECODERS,
    ENCODERS,
    Reference,
    assert_close,
    make,
    ragged,
    write_sentence_files,
)
from safetensors.torch import load_file, save_file

from core import LLM, PoolingParams

PLATFORMS = ["cpu", "simulated"]
AS_IT_IS = PoolingParams(normalize=False)
LOGITS = PoolingParams(use_activation=False)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(stem, kind, **config) -> folder, made once; `pooled` writes sentence-transformers' files."""
    folders: dict[str, Path] = {}

    def once(stem: str, kind: str = "Model", pooled: str | None = None, **config: Any) -> Path:
        key = f"{stem}{kind}{pooled}{sorted(config.items())}"
        if key not in folders:
            folders[key] = make(tmp_path_factory.mktemp("pooled"), stem, kind, **config)
            if pooled is not None:
                write_sentence_files(folders[key], pooled)
        return folders[key]

    return once


def engine(folder: Path, platform: str, **more: Any) -> LLM:
    return LLM(str(folder), platform=platform, dtype="float32", kv_cache_memory="16MiB", **more)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("stem", ENCODERS)
def test_the_first_tokens_state_is_that_of_transformers(made: Make, stem: str, platform: str) -> None:
    folder, texts = made(stem), ragged()
    with engine(folder, platform) as llm:
        assert llm.info.pooling is not None and llm.info.pooling.tokens == "first"
        assert "the first token, 64 numbers, scaled to length 1" in str(llm.ledger)
        vectors = llm.embed(texts, AS_IT_IS, use_tqdm=False)
        scaled = llm.embed(texts[:1], use_tqdm=False)[0].outputs.embedding
    reference = Reference(folder)
    for text, vector in zip(texts, vectors, strict=True):
        assert_close(vector.outputs.embedding, reference.hidden(text)[0])
    assert sum(number * number for number in scaled) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("stem", ["Bert", "ModernBert", "Llama", "Qwen3", "Gemma3Text"])
def test_the_mean_of_all_tokens_is_that_of_transformers(made: Make, stem: str, platform: str) -> None:
    folder, texts = made(stem, pooled="mean_tokens"), ragged()
    with engine(folder, platform) as llm:
        vectors = llm.embed(texts, use_tqdm=False)
    reference = Reference(folder)
    for text, vector in zip(texts, vectors, strict=True):
        mean = reference.hidden(text).mean(dim=0)
        assert_close(vector.outputs.embedding, torch.nn.functional.normalize(mean, dim=0))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("stem", DECODERS)
def test_the_last_tokens_state_is_that_of_transformers_in_chunks_too(
    made: Make, stem: str, platform: str
) -> None:
    folder, texts = made(stem), ragged()
    with engine(folder, platform, max_num_batched_tokens=48) as llm:
        vectors = llm.embed(texts, AS_IT_IS, use_tqdm=False)
        again = llm.embed(texts, AS_IT_IS, use_tqdm=False)
    reference = Reference(folder)
    for text, vector, repeated in zip(texts, vectors, again, strict=True):
        expected = reference.hidden(text)[-1]
        assert_close(vector.outputs.embedding, expected)
        assert_close(repeated.outputs.embedding, expected)
    assert again[-1].num_cached_tokens >= 64, "a prefix that was computed before is computed once"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("stem", [*ENCODERS, *DECODERS])
def test_numbers_for_labels_are_those_of_transformers(made: Make, stem: str, platform: str) -> None:
    folder, texts = made(stem, "ForSequenceClassification", num_labels=3), ragged()
    with engine(folder, platform) as llm:
        numbers = llm.classify(texts, LOGITS, use_tqdm=False)
        shares = llm.classify(texts, use_tqdm=False)
        assert llm.info.pooling is not None
        assert llm.info.pooling.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    reference = Reference(folder, "ForSequenceClassification")
    for text, logits, share in zip(texts, numbers, shares, strict=True):
        expected = reference.logits(text)
        assert_close(logits.outputs.probs, expected)
        assert_close(share.outputs.probs, torch.softmax(expected, dim=0))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_decoder_that_was_trained_to_see_both_ways_does(made: Make, platform: str) -> None:
    folder, texts = made("Gemma3Text", pooled="mean_tokens", use_bidirectional_attention=True), ragged()
    with engine(folder, platform) as llm:
        vectors = llm.embed(texts, use_tqdm=False)
    reference = Reference(folder)
    for text, vector in zip(texts, vectors, strict=True):
        mean = reference.hidden(text).mean(dim=0)
        assert_close(vector.outputs.embedding, torch.nn.functional.normalize(mean, dim=0))


def test_modernbert_classifies_the_mean_where_its_config_says_so(made: Make) -> None:
    folder = made("ModernBert", "ForSequenceClassification", classifier_pooling="mean", num_labels=2)
    text = ragged()[5]
    with engine(folder, "cpu") as llm:
        numbers = llm.classify([text], LOGITS, use_tqdm=False)[0].outputs.probs
    assert_close(numbers, Reference(folder, "ForSequenceClassification").logits(text))


def test_norms_of_the_first_berts_are_found_by_their_old_names(made: Make, tmp_path: Path) -> None:
    """Google's own checkpoints have a gamma and a beta."""
    folder, text = made("Bert"), ragged()[5]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spelled = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    weights = load_file(folder / "model.safetensors")
    for modern, old in spelled:
        weights = {name.replace(modern, old): tensor for name, tensor in weights.items()}
    assert any(name.endswith("gamma") for name in weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with engine(tmp_path, "cpu") as llm:
        vector = llm.embed([text], AS_IT_IS, use_tqdm=False)[0].outputs.embedding
    assert_close(vector, Reference(folder).hidden(text)[0])


def test_a_pooler_that_a_roberta_classifier_was_saved_with_is_left_alone(made: Make, tmp_path: Path) -> None:
    """Its head has a layer of its own, and never looks at the pooler."""
    folder, text = made("Roberta", "ForSequenceClassification", num_labels=2), ragged()[5]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["roberta.pooler.dense.weight"] = torch.randn(64, 64)
    weights["roberta.pooler.dense.bias"] = torch.randn(64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with engine(tmp_path, "cpu") as llm:
        numbers = llm.classify([text], LOGITS, use_tqdm=False)[0].outputs.probs
    assert_close(numbers, Reference(folder, "ForSequenceClassification").logits(text))


@pytest.mark.parametrize("stem", ["Bert", "Roberta", "DistilBert", "ModernBert"])
def test_a_model_that_fills_in_masked_words_gives_embeddings(made: Make, stem: str) -> None:
    folder, text = made(stem, "ForMaskedLM"), ragged()[5]
    with engine(folder, "cpu") as llm:
        vector = llm.embed([text], AS_IT_IS, use_tqdm=False)[0].outputs.embedding
    assert_close(vector, Reference(folder).hidden(text)[0])


@pytest.mark.parametrize("stem", ["Bert", "ModernBert", "Qwen3"])
def test_neighbours_do_not_change_a_vector(made: Make, stem: str) -> None:
    texts = ragged()
    with engine(made(stem), "cpu", enable_prefix_caching=False) as llm:
        together = llm.embed(texts, use_tqdm=False)
        alone = [llm.embed([text], use_tqdm=False)[0] for text in texts]
    for one, many in zip(alone, together, strict=True):
        assert_close(many.outputs.embedding, torch.tensor(one.outputs.embedding), 1e-5)


def test_an_encoders_text_is_computed_in_one_step_and_leaves_nothing_in_the_cache(made: Make) -> None:
    texts = ragged()
    with engine(made("Bert"), "cpu") as llm:
        scheduler = llm.engine.scheduler
        llm.embed(texts, use_tqdm=False)
        repeated = llm.embed(texts, use_tqdm=False)
        steps = llm.engine.statistics().num_steps
    assert all(output.num_cached_tokens == 0 for output in repeated)
    assert steps == 2 and scheduler.cache.usage == 0


def test_a_small_step_takes_as_many_whole_texts_as_it_holds(made: Make) -> None:
    texts = [[7] * 60] * 5
    with engine(made("Bert"), "cpu", max_num_batched_tokens=128) as llm:
        assert llm.info.max_model_len == 128
        llm.embed(texts, use_tqdm=False)
        assert llm.engine.statistics().num_steps == 3
