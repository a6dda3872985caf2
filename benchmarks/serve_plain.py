"""The endpoint that serve.py compares with: FastAPI, Pillow and ONNX Runtime, in one thread. Takes the model's file."""

import io
import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> list[float]:
    pixels = np.asarray(Image.open(io.BytesIO(await file.read())).convert("RGB"))
    probabilities: list[float] = session.run(["probabilities"], {"image": pixels})[0].tolist()
    return probabilities


class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(f"Serving at http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}", flush=True)


Server(uvicorn.Config(app, port=0, log_level="warning")).run()
