"""Evaluate a model behind an API as OpenAI's, each number with its interval, chance level and controls.

python examples/jobs/judge_an_endpoint.py --url http://localhost:8000/v1 --model qwen --tasks "pope?file=coco_pope_popular.json&images=val2014"

Without --url a model of this package, which says "yes" to everything, is served here: the table shows what that is worth.
"""

import argparse
import http.server
import json
import threading
from pathlib import Path

import diptych as dp


class AlwaysYes(http.server.BaseHTTPRequestHandler):
    """A stand-in for a server: it answers every question with yes."""

    def do_POST(self) -> None:
        """One chat completion."""
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words: object) -> None:
        """Nothing is printed for a request."""


if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="the address that ends in /v1")
    parser.add_argument("--model", default="stand-in")
    parser.add_argument("--data", default="scenes:small", help="where questions come from, if the tasks have no files")
    parser.add_argument("--tasks", default="pope?n=20", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/endpoint"))
    given = parser.parse_args()
    url = given.url
    if not url:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), AlwaysYes)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"

    summary = dp.evaluate(
        dp.load(f"openai:{url}?model={given.model}"), given.data, given.tasks.split(","), given.out, overwrite=True
    )
    for r in summary.results:
        print(f"{r.task} {r.metric}: {r.value:.3f} [{r.low:.3f}-{r.high:.3f}], chance {r.chance}")
