"""Text in the playground: tokens as they come, drafts, canvases, two procedures, the end before the end."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import httpx
from playwright.sync_api import expect

from tests.browser.driving import Visit
from tests.http.server import Server


def test_a_typed_prompt_is_continued_token_by_token(visit: Visit, server: Server) -> None:
    visit.page.fill("#prompt", "JULIET:\n")
    visit.ask(max_tokens=60, seed=5)
    visit.run()
    visit.until("done")
    (body,) = visit.bodies()
    assert body == {
        "model": "shakespeare", "prompt": "JULIET:\n", "procedure": {"name": "autoregressive"}, "max_tokens": 60, "seed": 5,
    }  # fmt: skip
    whole = server.post("/v1/generate", body).json()["outputs"][0]["text"]
    assert visit.page.locator(".committed").inner_text().strip() == whole.strip()
    assert visit.page.locator(".prompt").text_content() == "JULIET:\n"
    seen = visit.page.evaluate("window.seen")
    states = [text for i, text in enumerate(seen) if i == 0 or text != seen[i - 1]]
    assert len(states) > 3 and all(later.startswith(earlier) for earlier, later in pairwise(states))
    assert (visit.figure("tokens"), visit.figure("forwards")) == ("60", "60")
    assert visit.page.locator("#announcements").inner_text().startswith("Finished. autoregressive: 60 tokens, 60 forwards")


def test_accepted_drafts_are_marked(visit: Visit) -> None:
    visit.page.fill("#prompt", "ROMEO:\n")
    visit.choose("speculative", adaptive=False)
    visit.ask(max_tokens=80, seed=3)
    visit.run()
    visit.until("done")
    (body,) = visit.bodies()
    assert body["procedure"] == {"name": "speculative", "drafter": "heads", "adaptive": False}
    tokens = [data for name, data in visit.events() if name == "token"]
    accepted = [data["accepted_text"] for data in tokens if data["accepted_text"]]
    assert len(accepted) > 3 and any(len(text) > 1 for text in accepted)
    assert visit.page.locator(".committed mark.accepted").all_text_contents() == accepted
    assert visit.page.locator(".committed").text_content() == "".join(data["text"] for data in tokens)
    assert visit.page.locator(".strides i").count() == len(tokens)
    accepted_tokens, drafted = map(int, visit.figure("accepted").split("/"))
    assert drafted > accepted_tokens == sum(data["accepted"] for data in tokens)


CANVAS = """async (text) => {
  const { TextView } = await import("./static/text_view.js");
  const view = new TextView("", "Output");
  document.body.append(view.element);
  view.revision({ start: 0, positions: [], token_ids: [], length: 6, text });
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const spans = view.element.querySelectorAll(".mask, .set, .fresh");
  const seen = Array.from(spans, (one) => [one.className, one.textContent]);
  view.element.remove();
  return seen;
}"""


def test_signs_of_two_units_are_whole_in_a_canvas(visit: Visit) -> None:
    assert visit.page.evaluate(CANVAS, "😀😀▁▁a😀b") == [["fresh", "😀😀"], ["mask", "··"], ["fresh", "a😀b"]]


def test_two_procedures_have_one_seed_also_where_none_is_given(visit: Visit) -> None:
    visit.page.check("#compare")
    visit.ask(max_tokens=3, seed="")
    visit.run()
    visit.until("done", 2)
    first, second = visit.bodies()
    assert first["seed"] == second["seed"]


def test_an_integer_that_the_page_cannot_write_is_said_and_not_changed(visit: Visit) -> None:
    visit.ask(seed="9007199254740993")
    visit.run()
    expect(visit.page.locator("#request-seed-refusal")).to_have_text("this page writes integers up to 9007199254740991")
    visit.ask(seed=1, n=300000)
    visit.run()
    expect(visit.page.locator("#request-n-refusal")).to_have_text("this page shows at most 1024 outputs")
    assert visit.bodies() == []


def test_what_is_cancelled_ends_also_where_the_server_does_not_answer_that(visit: Visit) -> None:
    visit.page.route("**/v1/requests/*", lambda route: None)
    visit.ask(max_tokens=1900, ignore_eos=True)
    visit.run()
    visit.until("running")
    visit.page.click("#cancel")
    visit.until("cancelled")
    expect(visit.page.locator("#run")).to_be_enabled()


def test_a_canvas_is_provisional_until_it_is_committed(visit: Visit, server: Server) -> None:
    visit.choose("block_diffusion", block_length=32, rule="confidence", steps=32)
    visit.ask(max_tokens=64, seed=2)
    visit.run()
    pane = visit.page.locator(".pane")
    expect(pane.locator(".canvas .mask").first).to_be_visible()
    expect(pane.locator(".canvas :is(.set, .fresh)").first).to_be_visible()
    assert pane.locator(".canvas .mask").first.text_content().strip("·") == ""  # type: ignore[union-attr]
    visit.until("done")
    expect(pane.locator(".canvas *")).to_have_count(0)
    (body,) = visit.bodies()
    assert body["procedure"] == {"name": "block_diffusion", "block_length": 32, "rule": "confidence", "steps": 32}
    assert pane.locator(".committed").text_content() == server.post("/v1/generate", body).json()["outputs"][0]["text"]


def test_two_procedures_run_side_by_side_from_one_seed(visit: Visit) -> None:
    visit.page.check("#compare")
    visit.choose("speculative", "b", adaptive=False)
    visit.ask(max_tokens=60)
    visit.run()
    visit.until("done", 2)
    first, second = visit.bodies()
    assert first["seed"] == second["seed"] and first["prompt"] == second["prompt"]
    assert {first["procedure"]["name"], second["procedure"]["name"]} == {"autoregressive", "speculative"}
    texts = visit.page.locator(".committed").all_text_contents()
    assert texts[0] == texts[1]  # verified drafting gives the text of one token a forward
    fewer = int(visit.figure("forwards", 1))
    assert fewer < int(visit.figure("forwards")) == 60
    assert float(visit.figure("per forward", 1)) == round(60 / fewer, 2)
    verdict = visit.page.locator("#verdict").inner_text()
    assert verdict.startswith("The same text, token for token · speculative: ") and "fewer forwards" in verdict


def test_cancelling_ends_the_request_on_the_server(visit: Visit, server: Server) -> None:
    visit.ask(max_tokens=2000)
    visit.run()
    expect(visit.page.locator(".committed")).not_to_be_empty()
    visit.page.click("#cancel")
    visit.until("cancelled")
    server.until(server.is_idle)
    deleted = [one.url for one in visit.asked if one.method == "DELETE"]
    assert len(deleted) == 1 and "/v1/requests/req-" in deleted[0]
    assert 0 < int(visit.figure("tokens")) < 2000
    expect(visit.page.locator("#run")).to_be_enabled()
    assert httpx.get(server.url + "/health/ready").status_code == 200


def test_the_first_output_is_timed_while_the_text_goes_on(visit: Visit) -> None:
    visit.ask(max_tokens=2000)
    visit.run()
    expect(visit.page.locator(".committed")).not_to_be_empty()
    cell = visit.page.locator(".figures > div", has=visit.page.locator("dt", has_text="first output")).locator("dd")
    expect(cell).to_have_text(re.compile(r"\d m?s$"))
    assert visit.panes("running").count() == 1
    visit.page.click("#cancel")
    visit.until("cancelled")


def test_guesses_that_did_not_pay_are_explained(visit: Visit) -> None:
    note = visit.page.locator(".note")
    usage = {"generated_tokens": 60, "forwards": 50, "tokens_per_forward": 1.2, "drafted_tokens": 20, "accepted_tokens": 10}
    done = {"outputs": [{"text": "", "finish_reason": "length"}], "usage": usage}
    visit.page.route("**/v1/generate", lambda route: route.fulfill(body=f"event: done\ndata: {json.dumps(done)}\n\n"))
    for adaptive in (True, False):
        visit.choose("speculative", adaptive=adaptive)
        visit.run()
        visit.until("done")
        expect(note).to_be_visible(visible=adaptive)
    visit.choose("speculative", adaptive=True)
    usage |= {"forwards": 20, "tokens_per_forward": 3.0}
    visit.run()
    visit.until("done")
    expect(note).to_be_hidden()


def test_two_outputs_are_kept_apart(visit: Visit, server: Server) -> None:
    visit.ask(max_tokens=20, n=2, seed=8)
    visit.run()
    visit.until("done")
    (body,) = visit.bodies()
    outputs = server.post("/v1/generate", body).json()["outputs"]
    assert visit.page.locator(".committed").all_text_contents() == [output["text"] for output in outputs]


def test_the_strip_shows_the_servers_own_metrics_while_it_is_seen(visit: Visit) -> None:
    visit.ask(max_tokens=300)
    visit.run()
    page = visit.page
    expect(page.locator("#strip-running")).to_have_text("1")
    expect(page.locator("#strip-axes")).to_have_text("1 expand, 0 refine")
    assert int(page.locator("#strip-forwards").inner_text()) > 0
    page.click("#cancel")
    visit.until("cancelled")
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)  # one that was on its way may still end
    before = sum(one.url.endswith("/metrics") for one in visit.asked)
    page.wait_for_timeout(2200)
    assert sum(one.url.endswith("/metrics") for one in visit.asked) == before > 0
