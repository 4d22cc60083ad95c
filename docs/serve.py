"""Serves what `sptad export --format stablehlo` wrote, with jax, flatbuffers and numpy alone.

    python serve.py detector.zip 8000
    curl --data-binary @window.npz http://127.0.0.1:8000

window.npz: "rgb" uint8 [F, S, S, 3] and/or "flow" uint8 [F, S, S, 2], as meta.json says under "inputs", without the
batch; "num_frames", if fewer than F are real. Answer: JSON, segments in seconds from the window's start, best first.
"""

import http.server
import io
import json
import sys
import zipfile

import jax
import jax.export
import numpy as np


def load(path):
    """-> (compiled as needed: dict of arrays -> dict of arrays, meta.json)"""
    with zipfile.ZipFile(path) as file:
        program = jax.export.deserialize(bytearray(file.read("detector.stablehlo")))
        return jax.jit(program.call), json.loads(file.read("meta.json"))


def detect(program, meta, window, threshold=0.1):
    length, fps = meta["config"]["data"]["num_frames"], meta["source"]["fps"]
    window = {"num_frames": length, **window}
    batch = {name: np.asarray(window[name], spec["dtype"])[None] for name, spec in meta["inputs"].items()}
    out = jax.device_get(program(batch))
    scores, seconds = out["scores"][0], np.clip(out["segments_se"][0] * length, 0, window["num_frames"]) / fps
    rows = [{"label": meta["classes"][a], "score": float(scores[n, a]), "segment": seconds[n].tolist()}
            for n, a in np.argwhere(scores >= threshold)]  # fmt: skip
    return sorted(rows, key=lambda row: -row["score"])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(detect(*self.detector, np.load(io.BytesIO(body), allow_pickle=False))).encode()
        except Exception as error:  # whatever is wrong with a request, the next one is served
            return self.send_error(400, explain=str(error))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    program, meta = Handler.detector = load(sys.argv[1])
    streams = {name: np.zeros(meta["inputs"][name]["shape"][1:]) for name in meta["config"]["model"]["streams"]}
    detect(program, meta, streams)  # compiles
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
