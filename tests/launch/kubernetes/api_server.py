"""A stand-in for Kubernetes' API server: keeps what is created, runs nothing. A test sets what became of it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml


class ApiServer(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}  # by path
        self.pods: dict[str, dict[str, Any]] = {}  # by name: labels, log
        self.refuse: str | None = None  # the kind that is forbidden

    def kubeconfig(self, file: Path) -> Path:
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}
        context = {"name": "lab", "context": {"cluster": "c", "user": "u"}}
        user = {"name": "u", "user": {}}
        content = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "lab"}
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
        return file


@contextmanager
def api_server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{urlsplit(self.path).path}/{body['metadata']['name']}"
        if body["kind"] == self.server.refuse:
            self._answer(403, _status(f"{body['kind']} is forbidden"))
        elif path in self.server.objects:
            self._answer(409, _status("already exists"))
        else:
            self.server.objects[path] = body
            self._answer(201, body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        *_, last = url.path.split("/")
        if last == "log":
            self._answer(200, self.server.pods[url.path.split("/")[-2]]["log"])
        elif last == "pods":
            key, _, value = parse_qs(url.query)["labelSelector"][0].partition("=")
            chosen = [name for name, pod in self.server.pods.items() if pod["labels"].get(key) == value]
            self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": [_pod(name) for name in chosen]})
        elif url.path in self.server.objects:
            self._answer(200, self.server.objects[url.path])
        else:
            self._answer(404, _status("not found"))

    def do_DELETE(self) -> None:
        found = self.server.objects.pop(urlsplit(self.path).path, None)
        self._answer(200 if found else 404, _status("deleted" if found else "not found"))

    def _answer(self, code: int, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def _status(message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "message": message}


def _pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "node"}]}}
