"""Chromium, driven by Playwright, on pages that may ask nobody but the server under test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.driving import Visit, chromium
from tests.http.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The two embedded models, as `stride serve` without arguments serves them."""
    if shutil.which("chromium") is None:
        pytest.skip("the tests of the playground need chromium")
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Of one module: while Playwright runs, asyncio.run of other tests in this process would fail."""
    if shutil.which("chromium") is None:
        pytest.skip("the tests of the playground need chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: object, server: Server, tmp_path: Path) -> Iterator[Visit]:
    """A page of the playground, ready to be used; afterwards nothing was wrong in its console and no request left the host."""
    with Visit(browser, server.url) as visit:
        visit.open()
        yield visit
