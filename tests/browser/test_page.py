"""The page as such: by keyboard alone, by its names, in both themes, on a phone, as code, and as files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.driving import Visit
from tests.few import few
from tests.http.server import Server

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
OPERATED = {"button", "checkbox", "combobox", "link", "listbox", "radio", "spinbutton", "switch", "textbox", "DisclosureTriangle"}


def test_the_keyboard_alone_reaches_everything(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("KING RICHARD:")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("document.activeElement.id") == "run":
            break
    assert {"way-a-procedure", "compare", "request-max_tokens", "request-seed", "fresh-seed", "run"} <= reached
    page.locator("#request-max_tokens").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("1500")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".committed")).not_to_be_empty()
    page.keyboard.press("Escape")
    visit.until("cancelled")
    assert page.locator(".prompt").text_content() == "KING RICHARD:"


def names(visit: Visit) -> list[tuple[str, str]]:
    """Role and accessible name of everything that can be operated, as a screen reader has them."""
    nodes: list[dict[str, Any]] = visit.context.new_cdp_session(visit.page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]
    return [(role, name) for role, name in roles if role in OPERATED]


@pytest.mark.parametrize("model", ["shakespeare", "shapes"])
def test_every_control_has_a_name_and_every_part_a_landmark(visit: Visit, model: str) -> None:
    page = visit.page
    visit.set("#model", model)
    page.check("#compare")
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    visit.ask(**({"max_tokens": 10} if model == "shakespeare" else {}))
    visit.run()
    visit.until("done", 2)
    found = names(visit)
    assert len(found) > 30 and [role for role, name in found if not name.strip()] == []
    for role in ("banner", "main", "navigation"):
        expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    expect(page.get_by_role("form", name="Request")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    ids = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("img:not([alt])").count() == 0


READ = (
    "ink on paper", "ink on sheet", "ink on expand-wash", "muted on paper", "muted on sheet", "muted on sunk", "expand on sheet",
    "refine on sheet", "expand on expand-wash", "refine on refine-wash", "bad on bad-wash",
)  # fmt: skip
"""Colours of text on the colours behind it."""


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser: object, server: Server, theme: str) -> None:
    pairs = [tuple(pair.split(" on ")) for pair in READ]
    with Visit(browser, server.url, color_scheme=theme) as visit:
        visit.open()
        shades = visit.page.evaluate(
            """names => Object.fromEntries(names.map(name => {
              const probe = document.body.appendChild(document.createElement('i'));
              probe.style.color = `var(--${name})`;
              const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
              probe.remove();
              return [name, rgb];
            }))""",
            sorted({name for pair in pairs for name in pair}),
        )
        for pair in pairs:
            low, high = sorted(luminance(shades[name]) for name in pair)
            assert (high + 0.05) / (low + 0.05) >= 4.5, pair
        assert (luminance(shades["paper"]) < 0.1) == (theme == "dark")


def test_a_chosen_theme_stays(visit: Visit) -> None:
    def paper() -> str:
        return str(visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    light = paper()
    for _ in range(2):
        visit.page.get_by_role("button", name="Theme").click()
    assert visit.page.get_by_role("button", name="Theme: dark").is_visible() and paper() != light
    visit.page.reload()
    assert paper() != light


@pytest.mark.parametrize("model,procedure", few([("shakespeare", "block_diffusion"), ("shapes", "euler")], ("shapes", "euler")))
def test_a_phone_shows_it_all_without_scrolling_sideways(browser: object, server: Server, model: str, procedure: str) -> None:
    with Visit(browser, server.url, **PHONE) as visit:
        visit.open()
        assert not visit.overflows()
        visit.set("#model", model)
        visit.page.check("#compare")
        visit.choose(procedure)
        if model == "shakespeare":
            visit.ask(max_tokens=40)
        assert not visit.overflows()
        visit.run()
        visit.until("done", 2)
        assert not visit.overflows()
        expect(visit.page.locator(".pane").first).to_be_in_viewport()
        visit.page.click("#show-code")
        assert not visit.overflows()


@pytest.mark.parametrize("model", ["shakespeare", "shapes"])
def test_a_finger_hits_every_control(browser: object, server: Server, model: str) -> None:
    with Visit(browser, server.url, **PHONE) as visit:
        visit.open()
        visit.set("#model", model)
        visit.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        operated = visit.page.locator("header :is(a, button), #compose :is(input, select, textarea, button, summary):visible")
        sizes = operated.evaluate_all("all => all.map(one => [one.id, one.offsetWidth, one.offsetHeight])")
        assert len(sizes) > 20 and [one for one in sizes if min(one[1:]) < 24] == []


def test_a_long_help_text_can_be_read_whole(browser: object, server: Server) -> None:
    cut = "one => one.scrollHeight > one.clientHeight"
    with Visit(browser, server.url, **PHONE) as visit:
        visit.open()
        visit.choose("speculative")
        help = visit.page.locator("#way-a-drafter-help")
        visit.page.locator("#prompt").focus()
        assert help.evaluate(cut)
        visit.page.locator("#way-a-drafter").focus()
        assert not help.evaluate(cut)
        visit.page.locator("#prompt").focus()
        help.hover()
        expect(help).to_have_attribute("title", help.text_content() or "")
        for still_cut in (False, True):
            help.tap()
            assert help.evaluate(cut) == still_cut


@pytest.mark.parametrize("model", ["shakespeare", "shapes"])
def test_the_code_that_is_copied_does_the_same(visit: Visit, server: Server, tmp_path: Path, model: str) -> None:
    page = visit.page
    visit.set("#model", model)
    if model == "shakespeare":
        page.fill("#prompt", "It's \"ROMEO\":\n")
        visit.ask(max_tokens=12, temperature=0.5, top_k=40)
    else:
        visit.choose("flow_map", steps=2)
        # Longer, in base64, than one argument of a program may be.
        Image.effect_noise((400, 400), 90.0).convert("RGB").save(tmp_path / "picture.png")
        visit.set("#negative", "")
        page.set_input_files("#picture-file", tmp_path / "picture.png")
    visit.run()
    visit.until("done")
    page.click("#show-code")
    printed = {}
    for language, command in {"curl": ["bash", "-c"], "openai": [sys.executable, "-c"], "httpx": [sys.executable, "-c"]}.items():
        page.check(f"input[value={language}]")
        page.click("#copy")
        expect(page.locator("#copied")).not_to_be_empty()
        command.append(page.locator("#code").inner_text())
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        printed[language] = done.stdout
    if model == "shakespeare":
        text = page.locator(".committed").text_content() or ""
        assert printed["openai"] == text and printed["httpx"].startswith(text)
        assert "event: done" in printed["curl"]
    else:
        shown = (page.locator(".frame img").get_attribute("src") or "").split(",")[1]
        assert shown in printed["curl"]
        assert Image.open(tmp_path / "stride-0.png").size == (32, 32)


def test_files_come_with_their_types_a_policy_and_a_tag(server: Server) -> None:
    page = httpx.get(server.url + "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for name, kind in {"app.js": "text/javascript", "base.css": "text/css", "mark.svg": "image/svg+xml"}.items():
        file = httpx.get(f"{server.url}/static/{name}")
        assert file.status_code == 200 and file.headers["content-type"].startswith(kind)
        assert file.headers["x-content-type-options"] == "nosniff" and file.headers["cache-control"] == "no-cache"
        again = httpx.get(f"{server.url}/static/{name}", headers={"If-None-Match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/static/absent.js", "/static/..%2Fapp.py", "/static/%2e%2e/app.py"):
        assert httpx.get(server.url + path).status_code == 404


def test_the_routes_can_be_read_and_tried_without_a_network(visit: Visit, server: Server) -> None:
    page = visit.page
    page.goto(server.url + "/docs#post-v1-generate")
    generate = page.locator("#post-v1-generate")
    expect(generate).to_have_attribute("open", "")
    expect(generate.locator("tr", has_text="preview_every").first).to_contain_text("evaluations between previews")
    generate.locator("textarea").fill('{"model": "shakespeare", "prompt": "ROMEO:", "max_tokens": 3, "seed": 1}')
    generate.get_by_role("button", name="Send").click()
    expect(generate.locator("pre")).to_contain_text('"finish_reason": "length"')
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    expect(page.locator(".operation")).to_have_count(sum(len(ways) for ways in paths.values()))
    assert [role for role, name in names(visit) if not name.strip()] == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert not visit.overflows()
