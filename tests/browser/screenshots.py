"""Takes the pictures of the playground that the README shows: python -m tests.browser.screenshots."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect

from tests.browser.driving import Visit, chromium
from tests.http.server import Server

FOLDER = Path(__file__).parents[2] / "docs"
LAPTOP = {"viewport": {"width": 1280, "height": 800}, "device_scale_factor": 1.5}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
CAPTION = "a large red circle above a small blue square on a white background"


def texts(visit: Visit) -> None:
    """Two procedures in the middle of their texts."""
    visit.page.check("#compare")
    visit.choose("speculative", adaptive=False)
    visit.choose("block_diffusion", "b", block_length=32)
    visit.ask(max_tokens=900, seed=14)
    visit.page.evaluate("document.querySelector('#request-fields details').open = false")
    visit.page.locator("#prompt").scroll_into_view_if_needed()
    visit.run()
    second = visit.page.locator(".pane").nth(1)
    expect(second.locator(".strides i").nth(2)).to_be_visible(timeout=120_000)
    expect(second.locator(".canvas .fresh").first).to_be_visible()
    expect(second.locator(".canvas .mask").first).to_be_visible()


def pictures(visit: Visit) -> None:
    """Two samplers from one noise, both at their end."""
    visit.set("#model", "shapes")
    visit.page.fill("#prompt", CAPTION)
    visit.page.check("#compare")
    visit.choose("euler", steps=20)
    visit.choose("flow_map", "b", steps=4)
    visit.ask(seed=7)
    visit.page.locator("#prompt").scroll_into_view_if_needed()
    visit.run()
    visit.until("done", 2)


SHOTS: tuple[tuple[str, dict[str, Any], str, Any], ...] = (
    ("laptop-light", LAPTOP, "light", texts),
    ("laptop-dark", LAPTOP, "dark", pictures),
    ("phone-light", PHONE, "light", pictures),
    ("phone-dark", PHONE, "dark", texts),
)


def take(browser: object, url: str, name: str, screen: dict[str, Any], theme: str, show: Any) -> None:
    """One picture, of what a reader sees at first."""
    with Visit(browser, url, color_scheme=theme, **screen) as visit:
        visit.open()
        visit.page.wait_for_timeout(1500)  # until the strip has measured something
        show(visit)
        visit.page.wait_for_timeout(300)
        shot = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
        shot.save(FOLDER / f"playground-{name}.png", optimize=True)
        if visit.panes("running").count():
            visit.page.click("#cancel")


def main() -> None:
    """Against a server of its own, unless one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a server with the embedded models")
    url = parser.parse_args().url
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = None if url else Server(Path(folder) / "log")
        try:
            with chromium() as browser:
                for shot in SHOTS:
                    take(browser, url or server.url, *shot)  # type: ignore[union-attr]
        finally:
            if server is not None:
                server.stop()


if __name__ == "__main__":
    main()
