"""A local server that speaks as much of the Hugging Face hub's protocol as decur needs."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SmallHub(ThreadingHTTPServer):
    """Repositories in memory: `{"USER/REPO": {"README.md": bytes}}`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def revision(self, repository):
        """The commit that a repository is at."""
        files = self.repositories[repository]
        told = [f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items())]
        return hashlib.sha1("\n".join(told).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallHub

    def log_message(self, *args):
        pass

    def _answer(self, code, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, hub = self.path.partition("?")[0], self.server
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repository, name = found.groups()
            data = hub.repositories.get(repository, {}).get(name)
            if data is None:
                return self._answer(404, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self._answer(200, data, ETag=tag, X_Repo_Commit=hub.revision(repository))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.*)?", path)
        if not found or found[1] not in hub.repositories:
            return self._answer(404, X_Error_Code="RepoNotFound")
        files = hub.repositories[found[1]]
        if (found[2] or "").startswith("/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                }
                for name, data in files.items()
            ]
            return self._answer(200, tree)
        about = {"id": found[1], "sha": hub.revision(found[1]), "private": False, "tags": []}
        return self._answer(200, about | {"siblings": [{"rfilename": name} for name in files]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub = self.server
        if not self.headers.get("Authorization"):
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in hub.repositories:
                told = {"error": "You already created it", "url": f"{hub.url}/{name}"}
                return self._answer(409, told)
            hub.repositories[name] = {}
            return self._answer(200, {"url": f"{hub.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if not found:
            return self._answer(404)
        repository, what = found.groups()
        if what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        for line in body.decode().splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                data = base64.b64decode(told["value"]["content"])
                hub.repositories[repository][told["value"]["path"]] = data
        commit = hub.revision(repository)
        return self._answer(
            200, {"commitOid": commit, "commitUrl": f"{hub.url}/{repository}/commit/{commit}"}
        )
