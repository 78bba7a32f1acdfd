"""A server that speaks OpenAI's chat completions and misbehaves to order, and small pools for the tests of writers."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager

import numpy as np

from cers.case import Case
from cers.pool import Pool
from cers.rationale import describe

GOOD = (
    "Texture: The lesion is bright.\nBoundary: The outline can be followed.\nContext: Its surroundings look alike.\n"
    "Summary: A lesion as measured."
)


def completion(text: str, **more) -> dict:
    return {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **more}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 90},
    }


def draft(body: bytes) -> str:
    """The measured text that a request holds."""
    content = json.loads(body)["messages"][1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    return text.split("Measured findings:\n", 1)[1].split("\n\nNumbers", 1)[0]


class Server:
    """bodies, headers: of every request, in order. script: called with (number from 0, handler); answers or misbehaves."""

    def __init__(self, script):
        self.bodies, self.headers, self.script, self.connections = [], [], script, 0
        self.gate = threading.Event()
        lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                self.body = body
                outer.script(number, self)

            def say(self, value, status=200, **headers):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for key, text in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(key.replace("_", "-"), text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

            def handle(self):
                with lock:
                    outer.connections += 1
                try:
                    super().handle()
                except ConnectionError:
                    pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(script):
    server = Server(script)
    try:
        yield server
    finally:
        server.close()


def always(text: str):
    return lambda number, handler: handler.say(completion(text))


def echo(number, handler):
    """The measured text word for word: the best that a writer can do."""
    handler.say(completion(draft(handler.body)))


def small_case(n: int, draw, **more) -> Case:
    image, mask = draw((2.0, 2.0), centre=(90.0 + 5 * n, 62.0), signal=1.3 + 0.1 * n, seed=n)
    image = (1000 * image).astype(np.float32)
    fields = {
        "modality": "MR",
        "body_site": "brain",
        "plane": "axial",
        "patient_id": f"patient-{n}",
        "source": f"case{n}.png",
        "spacing": (2.0, 2.0),
        **more,
    }
    return Case(
        image,
        mask.astype(np.uint8),
        {1: "tumor"},
        rationale=describe(image, mask, fields["spacing"], modality=fields["modality"], plane=fields["plane"]),
        **fields,
    )


def small_pool(folder, draw, count=3, **more) -> Pool:
    pool = Pool.create(folder)
    for n in range(count):
        pool.add(small_case(n, draw, **more))
    return pool
