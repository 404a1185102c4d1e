"""What most people would write: FastAPI around transformers.pipeline, one worker, torch with its own threads.

python -m tests.bench.baselines.pipeline FOLDER PORT; FOLDER holds the same weights as the service's artefact.
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Text(BaseModel):
    """One text."""

    text: str


def main(folder: str, port: str) -> None:
    """Serve until killed."""
    classify = pipeline("text-classification", model=folder, tokenizer=folder, top_k=None, device="cpu")
    app = FastAPI()

    @app.post("/")
    def label(text: Text) -> object:
        return classify(text.text)

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
