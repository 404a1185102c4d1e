"""Which artefacts there are, and the order in which they are made."""

from training.recipe import Recipe

_ONNX = ("torch", "transformers", "sentence-transformers", "onnx", "onnxruntime")

LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}

# Short ones first: the large downloads go on meanwhile.
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
            inputs=("minilm",),
            code=("export",),
            libraries=_ONNX,
            seconds=15,
            key_metric="cosine_to_torch",
        ),
        Recipe(
            "lid.176",
            "language",
            inputs=("lid.176", "wikipedia-leads"),
            libraries=("fasttext-predict",),
            key_metric="accuracy_50_characters",
        ),
        Recipe(LLMS["default"], "llm", inputs=(LLMS["default"],)),
        Recipe(LLMS["small"], "llm", inputs=(LLMS["small"],)),
    )
}
