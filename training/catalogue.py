"""Which artefacts there are, and the order in which they are made."""

from training.recipe import Kind, Recipe

LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}

_WRITTEN = ("training.graphs.bert", "training.graphs.arithmetic", "training.graphs.onnx_graph")
_GRAPHS = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")

# Seconds are those of two cores. Short ones come first: the large downloads go on meanwhile.
RECIPES = {
    recipe.name: recipe
    for recipe in (
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
            code=(*_WRITTEN, "training.datasets.wikipedia", "training.graphs.evaluate"),
            libraries=(*_GRAPHS, "sentence-transformers"),
            seconds=20,
            key_metric="cosine_int8_mean",
        ),
        Recipe(
            "lid.176",
            "language",
            inputs=("lid.176", "wikipedia-leads"),
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
            code=(
                "training.datasets.sentiment",
                "training.graphs.frozen_layers",
                *_WRITTEN,
                "training.graphs.evaluate",
            ),
            libraries=(*_GRAPHS, "scikit-learn"),
            seconds={"fast": 240, "long": 900},
            key_metric="accuracy",
        ),
        Recipe(
            "wikipedia",
            "wikipedia",
            inputs=("wikipedia-leads",),
            needs=("embedder",),
            code=("training.datasets.wikipedia", "training.graphs.evaluate", "server.tasks.rag.splitter"),
            libraries=("onnxruntime", "tokenizers", "numpy"),
            seconds=95,
            key_metric="passages",
            kind=Kind.COLLECTION,
        ),
        Recipe(
            "topics",
            "topics",
            needs=("embedder", "wikipedia"),
            code=("training.recipes.wikipedia", "training.datasets.wikipedia", "training.graphs.evaluate"),
            libraries=(*_GRAPHS, "sentence-transformers", "scikit-learn"),
            seconds=25,
            key_metric="accuracy",
        ),
        Recipe(
            "reranker",
            "reranker",
            inputs=("ms-marco-minilm-l12",),
            code=("training.graphs.evaluate",),
            libraries=("onnxruntime", "tokenizers", "numpy"),
            key_metric="largest_difference",
            by_name=True,
        ),
        Recipe(
            "retrieval",
            "retrieval",
            inputs=("django-docs", "scrapy-docs", "celery-docs", "sqlalchemy-docs"),
            needs=("embedder", "reranker"),
            code=("training.datasets.faq", "training.graphs.evaluate", "server.tasks.rag.splitter"),
            libraries=("onnxruntime", "tokenizers", "numpy", "scikit-learn"),
            seconds=900,
            key_metric="ndcg@10",
            kind=Kind.REPORT,
            by_name=True,
        ),
        *(
            Recipe(
                name,
                "llm",
                inputs=(name,),
                code=("training.recipes.gguf", "training.recipes.gguf_tokenizer"),
                libraries=("tokenizers", "jinja2"),
                seconds=5,
            )
            for name in LLMS.values()
        ),
    )
}
