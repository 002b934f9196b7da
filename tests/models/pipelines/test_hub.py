"""What is fetched of a pipeline's repository: its components, no second copies, no pickles, no code."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.pipelines import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = {
    "sd3_medium.safetensors": b"all in one file",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"a second copy",
    "transformer/diffusion_pytorch_model.bf16.safetensors": b"a third one",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors": b"a part of a second copy",
    "text_encoder/pytorch_model.bin": b"a pickle",
    "transformer/model.py": b"code",
    "README.md": b"words",
}


class Repository(BaseHTTPRequestHandler):
    """The routes of a hub that a download needs, over the files of a folder and a few more."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            content, kind = json.dumps(self.tree()).encode(), "application/json"
        elif path.startswith("/api/models/org/tiny"):
            content, kind = json.dumps(self.listing()).encode(), "application/json"
        elif path.startswith("/org/tiny/resolve/") and (found := self.content(path.split("/", 5)[5])) is not None:
            content, kind = found, "application/octet-stream"
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def names(self) -> list[str]:
        return [*(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()), *UNWANTED]

    def listing(self) -> dict[str, object]:
        return {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.names()]}

    def tree(self) -> list[dict[str, object]]:
        contents = {name: self.content(name) or b"" for name in self.names()}
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in contents.items()
        ]

    def content(self, name: str) -> bytes | None:
        if name in UNWANTED:
            return UNWANTED[name]
        file = self.folder / name
        return file.read_bytes() if file.is_file() else None


@pytest.fixture
def hub(pipeline_folder: Callable[[str], Path]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Repository, pipeline_folder("stable_diffusion_3")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_pipeline_comes_from_the_hub_once_and_then_from_its_cache(
    hub: str, tmp_path: Path, pipeline_folder: Callable[[str], Path]
) -> None:
    def fetched(**environment: str) -> Path:
        command = [sys.executable, "-c", "from service.models.hub import fetch; print(fetch('org/tiny', None))"]
        variables = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), **environment}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90, env=variables)
        assert ended.returncode == 0, ended.stderr
        return Path(ended.stdout.strip().splitlines()[-1])

    snapshot = fetched(HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    names = {str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()}
    original = pipeline_folder("stable_diffusion_3")
    assert names == {str(file.relative_to(original)) for file in original.rglob("*") if file.is_file()}
    assert load(snapshot).parameters > 0
    assert fetched(HF_HUB_OFFLINE="1") == snapshot
