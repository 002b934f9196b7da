from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The two embedded models, as `stride serve` without arguments serves them."""
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()
