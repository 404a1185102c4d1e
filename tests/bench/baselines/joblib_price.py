"""What most people would write: FastAPI around a pipeline from joblib, one worker.

python -m tests.bench.baselines.joblib_price FILE PORT. Its best setting is OMP_NUM_THREADS=1, which the caller gives.
"""

import sys
from dataclasses import fields

import joblib
import numpy as np
import uvicorn
from fastapi import FastAPI

from server.domain.pricing import House

_NAMES = [field.name for field in fields(House)]


def main(file: str, port: str) -> None:
    """Serve until killed."""
    model = joblib.load(file)
    app = FastAPI()

    @app.post("/")
    def price(house: House) -> float:
        row = np.array([[getattr(house, name) for name in _NAMES]], dtype=object)
        return float(np.exp(model.predict(row)[0]))

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
