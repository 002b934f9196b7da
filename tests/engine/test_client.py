"""What the front end lets into the engine."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.client import EngineClient, QueueFull
from service.engine.messages import Done, ImageWork, ModelCard, Submit, Usage
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
