"""The floor that `bench/serving.py` measures against, and what people write by hand: the same graph, one process.

`python bare.py floor|fastapi FOLDER PORT`: FOLDER holds `model.onnx`, and gets a log of one line per request.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn


def session(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = (folder / "model.onnx").read_bytes()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def feed_of(graph: Any) -> Any:
    kinds = [(entry.name, object if "string" in entry.type else np.float64) for entry in graph.get_inputs()]
    return lambda row: {name: np.array([[row[name]]], kind) for name, kind in kinds}


def floor(folder: Path) -> Any:
    """ASGI and orjson by hand: the least that answers from a graph and logs it."""
    import orjson

    graph = session(folder)
    feed, output = feed_of(graph), graph.get_outputs()[0].name
    log = os.open(folder / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        row = orjson.loads(body)["row"]
        found = graph.run([output], feed(row))[0][0].tolist()
        os.write(log, orjson.dumps({"row": row, "prediction": found}) + b"\n")
        answer = orjson.dumps({"probabilities": found})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def fastapi(folder: Path) -> Any:
    """FastAPI as its tutorial has it, without a log."""
    from fastapi import FastAPI

    graph = session(folder)
    feed, output = feed_of(graph), graph.get_outputs()[0].name
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
        return {"probabilities": graph.run([output], feed(body["row"]))[0][0].tolist()}

    return app


if __name__ == "__main__":
    which, where, port = sys.argv[1:]
    made = {"floor": floor, "fastapi": fastapi}[which](Path(where))
    uvicorn.run(
        made, port=int(port), http="httptools", loop="uvloop", lifespan="off", access_log=False, log_level="warning"
    )
