"""What the front end lets into the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.engine.client import EngineClient, QueueFull
from service.engine.messages import Done, ImageWork, ModelCard, Ready, Submit, Usage
from service.settings import Settings


def with_picture(name: str, size: int) -> Submit:
    work = ImageWork("a fox", 64, 64, image=bytes(size - 10), mask=bytes(10))
    return Submit(name, "toy", "euler", {}, 0, work, 0.0)


def test_given_pictures_in_flight_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.client.PICTURE_BYTES", 1000)

    async def ask() -> None:
        client = EngineClient(Settings.model_validate({}), lambda report: None)
        client.ready = True
        client.models = {"toy": ModelCard("toy", "image", "", [], [], "euler", 1, 0, 0)}
        client.submit([with_picture("alone", 5000)])  # nobody else is there to be harmed
        with pytest.raises(QueueFull, match="pictures"):
            client.submit([with_picture("second", 100)])
        client.submit([Submit("plain", "toy", "euler", {}, 0, ImageWork("a fox", 64, 64), 0.0)])
        client._dispatch(Done("alone", "completed", Usage()))
        client.submit([with_picture(f"r{i}", 250) for i in range(4)])
        with pytest.raises(QueueFull, match="pictures"):
            client.submit([with_picture("more", 20)])

    asyncio.run(ask())


def supervised(lives: list[int | Exception], **settings: float) -> tuple[EngineClient, list[str]]:
    """A client of engines that end, or cannot be started, one after another; and what came of it."""
    told: list[str] = []

    async def run() -> EngineClient:
        client = EngineClient(Settings.model_validate(settings), lambda report: None, lambda: told.append("given up"))

        async def life(directory: Path) -> int:
            told.append("life")
            if not lives:
                client._stopping.set()
                return 0
            end = lives.pop(0)
            if isinstance(end, Exception):
                raise end
            return end

        client._incarnation = life  # type: ignore[method-assign]
        await client._supervise()
        await client.stop()
        return client

    return asyncio.run(run()), told


def test_an_engine_that_cannot_be_started_at_first_ends_the_server_and_later_is_tried_again() -> None:
    client, told = supervised([OSError(12, "Cannot allocate memory")])
    assert told == ["life", "given up"] and "Cannot allocate memory" in (client.failure or "")
    client, told = supervised([-9, OSError(12, "Cannot allocate memory"), OSError(24, "Too many open files")])
    assert told == ["life"] * 4 and client.failure is None and client.restarts == 3


def test_a_stop_between_two_engines_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.client.FIRST_PAUSE_SECONDS", 1000.0)

    async def run() -> list[str]:
        client, lives = EngineClient(Settings.model_validate({}), lambda report: None), list[str]()

        async def life(directory: Path) -> int:
            lives.append("life")
            return -9

        client._incarnation = life  # type: ignore[method-assign]
        await client.start()
        while not client.restarts:
            await asyncio.sleep(0.01)
        await client.stop()
        return lives

    assert asyncio.run(asyncio.wait_for(run(), 9.0)) == ["life"]


def test_an_engine_that_says_nothing_for_long_does_not_answer() -> None:
    async def run() -> None:
        client = EngineClient(Settings.model_validate({"engine_silence_seconds": 50.0}), lambda report: None)
        assert not client.answers
        client._dispatch(Ready([]))
        assert client.answers
        client._heard -= 49.0
        assert client.answers
        client._heard -= 2.0
        assert client.ready and not client.answers

    asyncio.run(run())
