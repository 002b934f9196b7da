"""What the server refuses is explained where it can be put right; the key is asked for where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.driving import Visit
from tests.http.server import Server

KEY = "sesame-of-the-test-ключ-é"  # also one that the characters of a header cannot write

REFUSED = [
    ("shakespeare", "autoregressive", "#request-max_tokens", 99999, "exceed the context of 2048"),
    ("shakespeare", "speculative", "#way-a-ngram_min", 3, "is for the drafter ngram"),
    ("shapes", "euler", "#way-a-steps", 5000, "1000"),
    ("shapes", "flow_map", "#way-a-guidance", 20, "knows 1 to 4, not 20"),
    ("shapes", "flow_map", "#negative", "a circle", "takes guidance as an input"),
    ("shapes", "euler", "#prompt", "a purple elephant", "shapes does not know"),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a key, and allows five outputs of a request."""
    server = Server(tmp_path_factory.mktemp("guarded") / "log", "--model", "shapes", "--api-key", KEY, "--max-n", "5")
    yield server
    server.stop()


def give_key(page: Page) -> None:
    page.fill("#key", KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#compose")).to_be_visible()


def test_a_refused_field_is_named_marked_and_focused(visit: Visit) -> None:
    page = visit.page
    for model, procedure, field, value, says in REFUSED:
        page.reload()
        visit.set("#model", model)
        visit.choose(procedure)
        visit.set(field, value)
        visit.run()
        visit.until("failed")
        alert = page.get_by_role("alert")
        for part in ("The request was refused", says, "400"):
            expect(alert).to_contain_text(part)
        wrong, note = page.locator(field), page.locator(f"{field}-refusal")
        expect(wrong).to_be_focused()
        expect(wrong).to_have_attribute("aria-invalid", "true")
        expect(note).to_be_in_viewport()
        expect(note).to_contain_text(says)
        assert note.get_attribute("id") in (wrong.get_attribute("aria-describedby") or "").split()
        wrong.press("End")
        wrong.press("Backspace")
        expect(note).to_have_count(0)


def test_a_refusal_at_its_field_does_not_repeat_the_name(visit: Visit) -> None:
    visit.choose("speculative")
    for field, says in (("#way-a-draft_tokens", "Expected `int`"), ("#request-temperature", "Input should be")):
        value = visit.page.locator(field).input_value()
        visit.set(field, 99)
        visit.run()
        visit.until("failed")
        expect(visit.page.get_by_role("alert")).to_contain_text(f"{field.split('-')[-1]}: {says}")
        expect(visit.page.locator(f"{field}-refusal")).to_have_text(re.compile(f"^{says}"))
        visit.set(field, value)


def test_the_form_knows_how_many_outputs_this_server_allows(browser: object, guarded: Server) -> None:
    with Visit(browser, guarded.url) as visit:
        visit.page.goto(guarded.url + "/")
        give_key(visit.page)
        expect(visit.page.locator("#request-n-help")).to_contain_text("1 to 5")
        for n, state in ((6, "failed"), (5, "done")):
            visit.choose("flow_map", steps=1)
            visit.ask(n=n)
            visit.run()
            visit.until(state)


def test_what_is_no_number_is_said_before_anything_is_sent(visit: Visit) -> None:
    visit.set("#model", "shapes")
    visit.choose("euler", timesteps="1, many")
    visit.run()
    expect(visit.page.locator("#way-a-timesteps-refusal")).to_have_text("timesteps is numbers, separated by commas")
    assert visit.bodies() == []


def test_an_engine_that_dies_is_explained_and_the_request_can_be_sent_again(visit: Visit, server: Server) -> None:
    visit.ask(max_tokens=2000)
    visit.run()
    expect(visit.page.locator(".committed")).not_to_be_empty()
    server.kill_engine()
    visit.until("failed")
    alert = visit.page.get_by_role("alert")
    expect(alert).to_contain_text("The engine is away")
    expect(alert).to_contain_text("503")
    expect(alert).to_be_focused()
    expect(visit.page.locator("#strip")).to_have_attribute("data-state", "away")
    server.wait_ready()
    visit.ask(max_tokens=10)
    alert.get_by_role("button", name="Try again").click()
    visit.until("done")
    expect(visit.page.locator("#strip")).to_have_attribute("data-state", "up")


def test_a_server_that_does_not_answer_is_told_from_one_that_refuses(visit: Visit) -> None:
    visit.page.route("**/v1/generate", lambda route: route.abort())
    visit.run()
    alert = visit.page.get_by_role("alert")
    expect(alert).to_contain_text("No connection")
    ending = {"error": {"message": "the server is shutting down", "type": "server_error", "param": None, "code": "draining"}}
    answer = {"status": 503, "json": ending, "headers": {"Retry-After": "7"}}
    visit.page.route("**/v1/generate", lambda route: route.fulfill(**answer))  # type: ignore[arg-type]
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_contain_text("The server is shutting down")
    expect(alert).to_contain_text("The server asks to wait 7 s.")


def test_trying_again_gives_up_what_still_runs_beside_the_one_that_failed(visit: Visit) -> None:
    queue_full = {"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}
    left = [queue_full]

    def answer(route: Route) -> None:
        if left:
            route.fulfill(status=429, json=left.pop())
        else:
            route.continue_()

    visit.page.route("**/v1/generate", answer)
    visit.page.locator("#compare").check()
    visit.ask(max_tokens=1900, ignore_eos=True)
    visit.run()
    visit.until("running")
    visit.page.get_by_role("button", name="Try again").click()
    visit.until("running", 2)
    assert [one.method for one in visit.asked].count("DELETE") == 1, "the one that ran is not seen any more, and runs on"
    assert len(visit.bodies()) == 4
    # It has ended meanwhile, which must not look like the end of these.
    expect(visit.page.locator("#run")).to_be_disabled()
    visit.page.click("#cancel")
    visit.until("cancelled", 2)
    expect(visit.page.locator("#run")).to_be_enabled()


def test_what_is_asked_again_without_previews_can_be_given_up(visit: Visit) -> None:
    few = {"error": {"message": "too few", "type": "invalid_request_error", "param": "preview_every", "code": "invalid_value"}}
    left = [few]
    visit.page.route("**/v1/generate", lambda route: route.fulfill(status=400, json=left.pop()) if left else None)
    visit.set("#model", "shapes")
    visit.choose("flow_map", steps=2)
    visit.run()
    while len(visit.bodies()) < 2:
        visit.page.wait_for_timeout(20)
    visit.page.click("#cancel")
    visit.until("cancelled")
    expect(visit.page.locator("#run")).to_be_enabled()


def test_the_key_is_asked_for_used_and_written_nowhere(browser: object, guarded: Server) -> None:
    with Visit(browser, guarded.url) as visit:
        page = visit.page
        page.goto(guarded.url + "/")
        expect(page.locator("#key-dialog")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("An API key is needed")
        expect(page.locator("#key-dialog")).to_be_visible()
        alert = page.get_by_role("alert")
        expect(alert).to_have_text("The server refused this key.")
        expect(alert).to_be_in_viewport()
        expect(page.locator("#key")).to_be_focused()
        assert page.locator("#key").evaluate("one => [one.selectionStart, one.selectionEnd]") == [0, len("wrong")]
        give_key(page)
        visit.choose("flow_map", steps=2)
        visit.run()
        visit.until("done")
        page.click("#show-code")
        for language in ("curl", "openai", "httpx"):
            page.check(f"input[value={language}]")
            code = page.locator("#code").inner_text()
            assert "STRIDE_API_KEY" in code and "sesame" not in code
        page.keyboard.press("Escape")
        page.reload()
        expect(page.locator("#compose")).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
