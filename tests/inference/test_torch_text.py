"""Torch engines on a folder as it comes from a model hub: a tiny BERT with random weights."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.inference.text import TextClassifier, TextEmbedder
from server.inference.text_models import text_model
from server.inference.torch_text import load_from_hub
from server.models.spec import ModelSettings
from tests.small_artefacts import WORDS, soon, tiny_tokenizer

MAX_TOKENS = 32
TEXTS = [" ".join(WORDS[4 + n % 12 :][: 1 + n % 7]) for n in range(40)] + ["good " * 100]


@pytest.fixture(scope="module")
async def scheduler() -> AsyncIterator[Scheduler]:
    made = Scheduler(2, queue_limit=64)
    yield made
    made.close()


def save_bert(folder: Path, head: bool, **config: Any) -> str:
    """A BERT of one layer, with a head for classes or without, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = BertConfig(**{"vocab_size": len(WORDS), "max_position_embeddings": 64, **size, **config})
    model = BertForSequenceClassification(made) if head else BertModel(made)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), pad_token="[PAD]", unk_token="[UNK]", model_max_length=MAX_TOKENS
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = {index: f"class {index}" for index in range(12)}  # "10" sorts before "2" as text
    return save_bert(tmp_path_factory.mktemp("classifier"), head=True, id2label=labels)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("encoder")
    source = save_bert(folder / "bert", head=False)
    SentenceTransformer(source, device="cpu").save(str(folder / "whole"))
    return str(folder / "whole")


@pytest.fixture(scope="module")
def classifier(repository: str, scheduler: Scheduler) -> TextClassifier:
    return TextClassifier(load_from_hub("mine", repository, "abc123", ModelTask.CLASSIFICATION), scheduler)


async def test_a_repository_describes_itself(classifier: TextClassifier) -> None:
    described = classifier.description
    assert described.labels == tuple(f"class {index}" for index in range(12))
    assert (described.task, described.engine) == (ModelTask.CLASSIFICATION, "torch")
    assert (described.identity.name, described.identity.version) == ("mine", "abc123")
    assert described.max_input_tokens == MAX_TOKENS
    assert described.size_bytes > 0


async def test_results_are_those_of_each_text_alone(classifier: TextClassifier) -> None:
    together = await classifier.classify(TEXTS, deadline=soon())
    assert [result.truncated for result in together] == [False] * 40 + [True]
    for index in (0, 6, 40):
        (alone,) = await classifier.classify([TEXTS[index]], deadline=soon())
        assert alone.labels[0].score == pytest.approx(together[index].labels[0].score, abs=1e-5)
        assert sum(label.score for label in alone.labels) == pytest.approx(1)


async def test_what_the_model_does_not_know_is_reported(classifier: TextClassifier) -> None:
    found = await classifier.classify(["good", "good 👍", "👍", "zzz " * 100], deadline=soon())
    assert [result.unknown_share for result in found] == [0.0, 0.5, 1.0, 1.0]


async def test_calls_side_by_side_do_not_share_settings(
    classifier: TextClassifier, encoder: str, scheduler: Scheduler
) -> None:
    embedder = TextEmbedder(load_from_hub("vectors", encoder, None, ModelTask.EMBEDDING), scheduler)
    expected = await classifier.classify(TEXTS, deadline=soon())
    for engine in (classifier.classify, embedder.embed):
        found: Any = await asyncio.gather(*(engine(TEXTS, deadline=soon()) for _ in range(12)))
        assert all(len(results) == len(TEXTS) for results in found)
        if engine == classifier.classify:
            assert all([r.truncated for r in results] == [r.truncated for r in expected] for results in found)


async def test_an_encoder_gives_vectors_of_length_one(encoder: str, scheduler: Scheduler) -> None:
    embedder = TextEmbedder(load_from_hub("vectors", encoder, None, ModelTask.EMBEDDING), scheduler)
    vectors = await embedder.embed(TEXTS, deadline=soon())
    assert vectors.shape == (len(TEXTS), 16)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


async def test_results_are_kept_for_texts_that_recur(repository: str, encoder: str, scheduler: Scheduler) -> None:
    nothing: Any = None  # a repository's model is made of no artefact

    def loaded(name: str, task: ModelTask, source: str) -> Any:
        return text_model(name, task, ModelSettings(source=source), scheduler, 1 << 20).prepare()(nothing)

    classifier = loaded("kept", ModelTask.CLASSIFICATION, repository)
    embedder = loaded("embedder", ModelTask.EMBEDDING, encoder)
    for name, ask in (("kept", classifier.classify), ("embedder", embedder.embed)):
        first = await ask(TEXTS[:7], deadline=soon())
        counters = scheduler.counters[name]
        batches = sum(counters.batches.values())
        again = await ask(TEXTS[:7], deadline=soon())
        assert np.array_equal(first, again)
        assert (sum(counters.batches.values()), counters.cache_hits, counters.cache_misses) == (batches, 7, 7)
        assert counters.cache_bytes > 0


def save_short(folder: Path, kind: str, positions: int, *, head: bool) -> str:
    """A model with fewer positions than its tokenizer's length says, which is unlimited as of many published ones."""
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS) + 2, max_position_embeddings=positions, pad_token_id=0 if kind == "Bert" else 1, **size
    )
    made = getattr(transformers, f"{kind}{'ForSequenceClassification' if head else 'Model'}")(config)
    made.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "positions", "limit"), [("Bert", 24, 24), ("Roberta", 24, 22), ("DistilBert", 24, 24)]
)
async def test_a_model_reads_no_more_than_it_has_positions(
    tmp_path: Path, scheduler: Scheduler, kind: str, positions: int, limit: int
) -> None:
    from sentence_transformers import SentenceTransformer

    classifier = TextClassifier(
        load_from_hub("short", save_short(tmp_path / "c", kind, positions, head=True), None, ModelTask.CLASSIFICATION),
        scheduler,
    )
    source = save_short(tmp_path / "e", kind, positions, head=False)
    whole = SentenceTransformer(source, device="cpu")
    whole.max_seq_length = 512
    whole.save(str(tmp_path / "whole"))
    embedder = TextEmbedder(load_from_hub("vectors", str(tmp_path / "whole"), None, ModelTask.EMBEDDING), scheduler)
    assert classifier.description.max_input_tokens == embedder.description.max_input_tokens == limit
    texts = ["good " * (limit - 2), "good " * (limit - 1), "good " * 600]
    found = await classifier.classify(texts, deadline=soon())
    assert [result.truncated for result in found] == [False, True, True]
    assert (await embedder.embed(texts, deadline=soon())).shape[0] == 3


async def test_other_weights_have_another_digest(classifier: TextClassifier, repository: str, tmp_path: Path) -> None:
    same, other = (
        load_from_hub("mine", source, None, ModelTask.CLASSIFICATION)
        for source in (repository, save_bert(tmp_path, head=True, num_labels=3))
    )
    assert same.description.identity.digest == classifier.description.identity.digest
    assert other.description.identity.digest != classifier.description.identity.digest


@pytest.mark.parametrize("config", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}])
async def test_a_model_that_does_not_choose_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelUnavailable, match="does not choose one of several labels"):
        load_from_hub("odd", save_bert(tmp_path, head=True, **config), None, ModelTask.CLASSIFICATION)


async def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    save_bert(tmp_path, head=True, num_labels=3)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_from_hub("pickled", str(tmp_path), None, ModelTask.CLASSIFICATION)


async def test_a_device_that_is_not_there_is_named(repository: str) -> None:
    with pytest.raises(ModelUnavailable, match='device "cuda:99" cannot be used'):
        load_from_hub("mine", repository, None, ModelTask.CLASSIFICATION, "cuda:99")
