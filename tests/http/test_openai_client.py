"""The unmodified `openai` client against a real server."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from PIL import Image, ImageChops

from tests.http.server import Server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)


def test_a_completion_streamed_and_whole_is_the_same_text(client: openai.OpenAI) -> None:
    asked = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7, "temperature": 0.5}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len(whole.choices[0].text) == 40 and whole.choices[0].finish_reason == "length"
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert sum(1 for c in chunks if c.choices and c.choices[0].text) > 10
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40
    assert whole.usage.prompt_tokens == 7 and whole.usage.total_tokens == 47


def test_a_chat_streams_a_role_then_text_then_a_reason(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "A street."}, {"role": "user", "content": "Who goes there?"}]
    asked = {"model": "shakespeare", "messages": messages, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len("".join(c.choices[0].delta.content or "" for c in chunks)) == 12
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant" and len(whole.choices[0].message.content) == 12


def test_n_choices_are_seeded_one_by_one(client: openai.OpenAI) -> None:
    asked = {"model": "shakespeare", "prompt": "KING", "max_tokens": 16, "temperature": 1.0}
    three = client.completions.create(**asked, n=3, seed=10)
    singles = [client.completions.create(**asked, seed=10 + i).choices[0].text for i in range(3)]
    assert [choice.text for choice in three.choices] == singles and len(set(singles)) > 1


def test_a_stop_string_ends_the_text_and_is_never_shown(client: openai.OpenAI) -> None:
    asked = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 120, "seed": 3, "temperature": 0.7}
    free = client.completions.create(**asked).choices[0].text
    stop = free[20:24]
    expected = free[: free.index(stop)]
    whole = client.completions.create(**asked, stop=stop)
    assert whole.choices[0].text == expected and whole.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**asked, stop=[stop, "never to be found"], stream=True)
    assert "".join(c.choices[0].text for c in streamed) == expected


def test_block_diffusion_through_the_openai_route_gives_committed_text_only(client: openai.OpenAI) -> None:
    body = {"procedure": {"name": "block_diffusion", "block_length": 8, "rule": "confidence", "steps": 4}}
    asked = {"model": "shakespeare", "prompt": "First Citizen:\n", "max_tokens": 30, "seed": 1, "extra_body": body}
    whole = client.completions.create(**asked)
    streamed = list(client.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == whole.choices[0].text
    assert len(whole.choices[0].text) == 30
    assert whole.usage.forwards == 15 and whole.usage.tokens_per_forward == pytest.approx(2.0)


def test_a_picture_is_a_png_of_the_asked_size(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="shapes", prompt="a large red circle", size="32x32", n=2, extra_body={"seed": 5})
    pictures = [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in answer.data]
    assert [p.size for p in pictures] == [(32, 32)] * 2 and pictures[0].format == "PNG"
    assert pictures[0].tobytes() != pictures[1].tobytes()
    again = client.images.generate(model="shapes", prompt="a large red circle", size="32x32", extra_body={"seed": 5})
    repeated = Image.open(io.BytesIO(base64.b64decode(again.data[0].b64_json)))
    # Alone it ran in another batch shape than as one of two: equal to rounding.
    assert max(high for _, high in ImageChops.difference(repeated, pictures[0]).getextrema()) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_partial_images_come_before_the_completed_one(client: openai.OpenAI, count: int) -> None:
    extra = {"num_inference_steps": 10, "procedure": "euler", "seed": 5}
    stream = client.images.generate(
        model="shapes", prompt="a small blue square", stream=True, partial_images=count, extra_body=extra
    )
    events = list(stream)
    assert [e.type for e in events] == ["image_generation.partial_image"] * count + ["image_generation.completed"]
    assert [e.partial_image_index for e in events[:-1]] == list(range(count))
    assert len({e.b64_json for e in events}) == count + 1
    assert all(Image.open(io.BytesIO(base64.b64decode(e.b64_json))).size == (32, 32) for e in events)


def test_models_are_listed_with_what_they_can_do(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"shakespeare", "shapes"}
    assert "block_diffusion" in models["shakespeare"].procedures and "flow_map(x,t,s)" in models["shapes"].signature


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="shakespeare", prompt="x", temperature=3)
    assert error.value.param == "temperature"
