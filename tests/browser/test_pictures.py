"""Pictures in the playground: from noise to data, from a picture that is given, two samplers from one noise."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.browser.driving import Visit
from tests.http.server import Server

PROMPT = "a large red circle above a small blue square on a white background"


def test_a_picture_refines_from_noise(visit: Visit, server: Server) -> None:
    visit.set("#model", "shapes")
    visit.page.fill("#prompt", PROMPT)
    visit.choose("dpmpp_2m", steps=10, guidance=2)
    visit.ask(seed=4)
    visit.run()
    visit.until("done")
    (body,) = visit.bodies()
    assert body["procedure"] == {"name": "dpmpp_2m", "steps": 10, "guidance": 2} and body["preview_every"] == 1
    labels = visit.page.locator(".film button span").all_inner_texts()
    times = [float(label.removeprefix("t ")) for label in labels[:-1]]
    assert len(times) == 9 and times == sorted(times, reverse=True) and labels[-1] == "done"
    del body["preview_every"]
    whole = server.post("/v1/generate", body).json()
    shown = visit.page.locator(".frame img")
    assert shown.get_attribute("src") == f"data:image/png;base64,{whole['outputs'][0]['image']}"
    assert shown.get_attribute("alt") == f"Output: {PROMPT}"
    assert (visit.figure("NFE"), visit.figure("step")) == (str(whole["usage"]["nfe"]), "10 of 10")
    visit.page.locator(".film button").nth(2).click()
    expect(visit.page.locator(".where")).to_have_text(f"step 3 of 10 · t = {times[2]:.3f}")
    assert shown.get_attribute("src") != f"data:image/png;base64,{whole['outputs'][0]['image']}"


def test_one_jump_has_no_previews_and_is_no_error(visit: Visit) -> None:
    visit.set("#model", "shapes")
    visit.choose("flow_map", steps=1)
    visit.run()
    visit.until("done")
    assert [body.get("preview_every") for body in visit.bodies()] == [1, None]
    expect(visit.page.locator(".film li")).to_have_count(1)


def test_two_samplers_begin_with_one_noise(visit: Visit) -> None:
    visit.set("#model", "shapes")
    visit.page.check("#compare")
    visit.choose("euler", steps=8)
    visit.choose("flow_map", "b", steps=2)
    visit.run()
    visit.until("done", 2)
    assert (visit.figure("NFE"), visit.figure("NFE", 1)) == ("16", "2")
    assert len({body["seed"] for body in visit.bodies()}) == 1
    verdict = visit.page.locator("#verdict").inner_text()
    assert verdict.startswith("Two pictures from one noise · flow map: 8× fewer evaluations, ")


def test_a_picture_starts_from_another(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "blue.png"
    Image.new("RGB", (32, 32), (0, 0, 255)).save(file)
    visit.set("#model", "shapes")
    visit.choose("euler")
    expect(visit.page.locator("#way-a-strength")).to_have_count(0)
    visit.set("#negative", "a small green triangle")
    visit.page.set_input_files("#picture-file", file)
    expect(visit.page.locator("#picture-shown")).to_be_visible()
    visit.choose("euler", strength=0.5, steps=6)
    visit.run()
    visit.until("done")
    (body,) = visit.bodies()
    assert body["procedure"] == {"name": "euler", "strength": 0.5, "steps": 6}
    assert body["negative_prompt"] == "a small green triangle"
    sent = Image.open(io.BytesIO(base64.b64decode(body["image"].split(",")[1])))
    assert sent.getpixel((3, 3)) == (0, 0, 255)
    visit.page.click("#picture-remove")
    expect(visit.page.locator("#way-a-strength")).to_have_count(0)
