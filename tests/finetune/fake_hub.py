"""A hub of one's own: as much of its HTTP interface as an upload takes, kept in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_thisisnobodystokenatall"


@dataclass
class Hub:
    """What the hub holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)  # name: whether private
    files: dict[str, bytes] = field(default_factory=dict)  # repository/path: content
    objects: dict[str, bytes] = field(default_factory=dict)  # large files, by their sha256
    asked: list[str] = field(default_factory=list)
    refuses: int | None = None  # a status for whoever wants a repository


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a hub on this machine alone."""
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": held}))
    held.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any = None, status: int = 200) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> bytes:
        self.hub.asked.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self._asked()
        self._answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        content = self._asked()  # an address of storage, which is given no token
        assert self.headers.get("Authorization") is None
        self.hub.objects[self.path.rpartition("/")[2]] = content
        self._answer()

    def do_POST(self) -> None:
        body = self._asked()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            wrong = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "the front matter is no mapping"}]
            self._answer({"errors": wrong, "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            large = [(one["path"], one["path"].endswith(".safetensors")) for one in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if big else "regular"} for path, big in large]
            self._answer({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
            assert found[1] in self.hub.repositories
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            href = f"{self.hub.address}/storage/"
            actions = [{**one, "actions": {"upload": {"href": href + one["oid"]}}} for one in wanted]
            self._answer({"transfer": "basic", "objects": actions})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"{self.path} is unknown"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        if self.hub.refuses is not None:
            self._answer({"error": "refused"}, self.hub.refuses)
            return
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        there = name in self.hub.repositories
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repositories.setdefault(name, bool(private))
        self._answer({"url": f"{self.hub.address}/{name}", "name": name}, 409 if there else 200)

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[f"{repository}/{value['path']}"] = self.hub.objects[value["oid"]]
        address = f"{self.hub.address}/{repository}/commit/1"
        self._answer({"success": True, "commitOid": "1", "commitUrl": address, "hookOutput": ""})
