"""Which artefacts there are, each after those that it needs."""

from training.recipe import Kind, Recipe

LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}

_BERT = ("training.graphs.bert", "training.graphs.arithmetic", "training.graphs.onnx_graph")
_EVALUATE = "training.graphs.evaluate"
_BERT_LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")
_SERVING_LIBRARIES = ("onnxruntime", "tokenizers", "numpy")
_ANSWERING = (
    "answerer",
    "abstention",
    "grounding",
    "clauses",
    "statements",
    "scanner",
    "terms",
    "vocabulary",
    "splitter",
)

# Seconds are those of two cores. Short ones come first: the large downloads run meanwhile.
_RECIPES = (
    Recipe(
        "en_core_web_sm",
        "spacy_pipeline",
        inputs=("en-core-web-sm",),
        libraries=("spacy",),
        key_metric="published_entity_f1",
    ),
    Recipe(
        "embedder",
        "embedder",
        inputs=("minilm", "wikipedia-leads"),
        code=(*_BERT, _EVALUATE, "training.datasets.wikipedia"),
        libraries=(*_BERT_LIBRARIES, "sentence-transformers"),
        seconds=20,
        key_metric="cosine_int8_mean",
    ),
    Recipe(
        "lid.176",
        "language",
        inputs=("lid.176", "wikipedia-leads"),
        code=("training.datasets.wikipedia",),
        libraries=("fasttext-predict",),
        key_metric="accuracy_50_characters",
    ),
    Recipe(
        "house-prices",
        "house_prices",
        inputs=("ames",),
        code=("training.datasets.dataframe", "training.graphs.trees"),
        libraries=("scikit-learn", "joblib", "numpy", "onnx"),
        seconds=10,
        key_metric="r2",
    ),
    Recipe(
        "sentiment",
        "sentiment",
        inputs=("vader",),
        needs=("embedder",),
        code=(*_BERT, _EVALUATE, "training.datasets.sentiment", "training.graphs.frozen_layers"),
        libraries=(*_BERT_LIBRARIES, "scikit-learn"),
        seconds={"fast": 240, "long": 900},
        key_metric="accuracy",
    ),
    Recipe(
        "wikipedia",
        "wikipedia",
        inputs=("wikipedia-leads",),
        needs=("embedder",),
        code=(_EVALUATE, "training.datasets.wikipedia", "server.tasks.rag.splitter"),
        libraries=_SERVING_LIBRARIES,
        seconds=95,
        key_metric="passages",
        kind=Kind.COLLECTION,
    ),
    Recipe(
        "topics",
        "topics",
        needs=("embedder", "wikipedia"),
        code=(_EVALUATE, "training.datasets.wikipedia", "training.recipes.wikipedia"),
        libraries=(*_BERT_LIBRARIES, "sentence-transformers", "scikit-learn"),
        seconds=25,
        key_metric="accuracy",
    ),
    Recipe(
        "reranker",
        "reranker",
        inputs=("ms-marco-minilm-l12",),
        code=(_EVALUATE,),
        libraries=_SERVING_LIBRARIES,
        key_metric="largest_difference",
        by_default=False,
    ),
    Recipe(
        "retrieval",
        "retrieval",
        inputs=("django-docs", "scrapy-docs", "celery-docs", "sqlalchemy-docs"),
        needs=("embedder", "reranker"),
        code=(_EVALUATE, "training.datasets.faq", "server.tasks.rag.splitter"),
        libraries=(*_SERVING_LIBRARIES, "scikit-learn"),
        seconds=900,
        key_metric="ndcg@10",
        kind=Kind.REPORT,
        by_default=False,
    ),
    *(
        Recipe(name, "llm", inputs=(name,), libraries=("gguf", "tokenizers", "jinja2"), seconds=15)
        for name in LLMS.values()
    ),
    Recipe(
        "answers",
        "answers",
        needs=("embedder", LLMS["default"]),
        code=("training.datasets.manuals", *(f"server.tasks.rag.{name}" for name in _ANSWERING)),
        libraries=_SERVING_LIBRARIES,
        seconds=600,
        key_metric="precision_held-out",
        kind=Kind.REPORT,
        by_default=False,
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
