"""A real server: its own process, a free port, an engine behind it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx


class Server:
    """`stride serve` with these arguments, ready to be asked; stopped by `stop`."""

    def __init__(self, log: Path, *arguments: str, ready_seconds: float = 60.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        # One client for all: making one takes tens of milliseconds, which a benchmark must not count as the server's.
        self._client = httpx.Client(base_url=self.url, timeout=60)
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--threads", "1", *arguments]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            self.wait_ready(ready_seconds)
        except BaseException:
            self.process.kill()  # its engine sees that, and leaves
            raise

    def wait_ready(self, seconds: float = 60.0) -> None:
        self.until(lambda: self._is_ready(), seconds)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return httpx.get(self.url + "/health/ready", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def until(self, condition: object, seconds: float = 15.0) -> None:
        """Poll until the condition holds; an AssertionError with the server's log after `seconds`."""
        assert callable(condition)
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; the log:\n{self._log.read_text()[-4000:]}"
            time.sleep(0.02)

    def post(self, path: str, body: object) -> httpx.Response:
        return self._client.post(path, json=body)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that carry these labels."""
        total = 0.0
        for line in httpx.get(self.url + "/metrics", timeout=60).text.splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def is_idle(self) -> bool:
        """Nothing runs or waits, and no block is held."""
        busy = self.metric("stride_requests_running") + self.metric("stride_requests_waiting")
        return busy == 0 and self.metric("stride_kv_blocks", state="used") == 0

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        engines = [int(pid) for pid in children if b"service.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(engines) == 1
        return engines[0]

    def kill_engine(self) -> None:
        os.kill(self.engine_pid(), signal.SIGKILL)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)
