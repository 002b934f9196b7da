"""Generation with DiffusionGemma against transformers' own, step by step, with the same random numbers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.token_sampling import reference as sampling
from service.engine.messages import Submit
from service.engine.validation import InvalidField, procedure_parameters
from service.models.errors import ModelError
from service.procedures.uniform_noise import random_token
from service.workers.purposes import TOKEN_DRAW
from tests.diffusion_gemma import CANVAS, VOCABULARY, write_gemma
from tests.engine.driving import finish_all, finish_all_set_back
from tests.engine.test_diffusion_models import KNOWN, Canvas, engine_of, generated, prompt_of, submit
from tests.few import few
from tests.http.test_checkpoints import write_tokenizer

pytest.importorskip("transformers")

PUBLISHED = {
    "block_length": CANVAS, "rule": "entropy_bound", "entropy_bound": 0.5, "steps": 12, "t_max": 0.8, "t_min": 0.4,
    "stability_threshold": 1, "confidence_threshold": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusion-gemma")


@functools.cache
def reference(folder: Path) -> Any:
    model = write_gemma(folder)
    write_tokenizer(folder)
    return model


class Published:
    """transformers' generation with our random numbers: its canvases before each renoising, and how many forwards each took."""

    def __init__(self, model: Any, prompt: list[int], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers.models.diffusion_gemma import generation_diffusion_gemma as module

        self.canvases: list[list[Canvas]] = []
        self._model, self._prompt, self._seed, self._calls = model, prompt, seed, 0
        prepare, renoise = model._prepare_denoiser_inputs, module.EntropyBoundSampler.renoise_canvas

        def begin(**given: Any) -> Any:
            self.canvases.append([])
            self._calls = 0
            return prepare(**given)

        def noted(sampler: Any, accepted: Tensor, step: Any) -> Any:
            kept = zip(accepted[0].tolist(), sampler.accepted_token_mask[0].tolist(), strict=True)
            self.canvases[-1].append([token if whole else None for token, whole in kept])
            return renoise(sampler, accepted, step)

        monkeypatch.setattr(model, "_prepare_denoiser_inputs", begin)
        monkeypatch.setattr(module.EntropyBoundSampler, "renoise_canvas", noted)
        monkeypatch.setattr(module.EntropyBoundSampler, "initialize_canvas", lambda *_, **__: self._noise())
        monkeypatch.setattr(torch, "multinomial", self._draw)

    def _places(self) -> range:
        start = len(self._prompt) + CANVAS * (len(self.canvases) - 1)
        return range(start, start + CANVAS)

    def _noise(self) -> Tensor:
        self._calls += 1
        return torch.tensor([[random_token(self._seed, place, self._calls - 1, VOCABULARY) for place in self._places()]])

    def _draw(self, probabilities: Tensor, **_: Any) -> Tensor:
        numbers = torch.tensor([place | (self._calls - 1) << 32 for place in self._places()])
        gumbel = sampling.gumbel(torch.full((CANVAS,), self._seed), numbers, TOKEN_DRAW, VOCABULARY)
        return (probabilities.double().log() + gumbel).argmax(-1, keepdim=True)

    def run(self, count: int, parameters: dict[str, Any]) -> list[int]:
        from transformers import LogitsProcessor, LogitsProcessorList
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

        class Ban(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: Any) -> Tensor:
                scores[..., KNOWN:] = torch.finfo(torch.float32).min
                return scores

        self._model.generation_config.eos_token_id = None
        names = ("t_max", "t_min", "stability_threshold", "confidence_threshold")
        output = self._model.generate(
            torch.tensor([self._prompt]), max_new_tokens=count, max_denoising_steps=parameters["steps"],
            sampler_config=EntropyBoundSamplerConfig(parameters["entropy_bound"]), logits_processor=LogitsProcessorList([Ban()]),
            **{name: parameters[name] for name in names},
        )  # fmt: skip
        return output.sequences[0, len(self._prompt) :].tolist()


@pytest.mark.parametrize(
    "prompt,count,changes,early",
    [
        (13, 24, {}, False), (9, 9, {"steps": 3}, False),
        (30, 20, {"entropy_bound": 8.0, "t_max": 0.2, "t_min": 0.1, "confidence_threshold": 2.0}, True),
        (13, 16, {"entropy_bound": 8.0, "t_max": 0.05, "t_min": 0.02, "stability_threshold": 2, "confidence_threshold": 2.0},
         True),
        (21, 8, {"stability_threshold": 0, "confidence_threshold": 3.5}, True),
    ],
)  # fmt: skip
def test_it_generates_what_transformers_does_step_by_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prompt: int, count: int, changes: dict[str, Any], early: bool
) -> None:
    model, text, parameters = reference(folder), prompt_of(prompt), {**PUBLISHED, **changes}
    with monkeypatch.context() as patched:
        published = Published(model, text, 5, patched)
        expected = published.run(count, parameters)
    tokens, canvases = generated(
        engine_of(folder), submit("r", text, count, parameters=parameters, temperature=1.0, seed=5, revisions=True)
    )
    assert tokens == expected[:count]
    shown = [(i, canvas) for i, steps in enumerate(published.canvases) for canvas in steps[:-1]]
    assert canvases == [canvas[: count - i * CANVAS] for i, canvas in shown]
    assert early == any(len(steps) < parameters["steps"] for steps in published.canvases)


def a_day() -> list[Submit]:
    stem, day = prompt_of(40), []
    for i in range(9):
        parameters = {"rule": "uniform", "block_length": CANVAS, "steps": 6} if i % 3 == 2 else PUBLISHED
        day.append(submit(f"r{i}", stem[: 15 + 3 * i], 12 + 3 * i, parameters=parameters, temperature=float(i % 2), seed=i))
    return day


@functools.cache
def alone_through(folder: Path) -> dict[str, list[int]]:
    engine = engine_of(folder, prefix_cache=False, batch_invariant=True)
    return {request.id: finish_all(engine, [request]).tokens[request.id] for request in a_day()}


@pytest.mark.parametrize("positions,set_back", few([(1200, False), (112, False), (1200, True)], (112, False), (1200, True)))
def test_tokens_depend_neither_on_the_batch_nor_on_shared_blocks_nor_on_memory(
    folder: Path, positions: int, set_back: bool
) -> None:
    reference(folder)
    day = a_day()
    alone = alone_through(folder)
    bytes_each = 2 * (2 * 16 + 32) * 2 * 4
    engine = engine_of(folder, str(positions * bytes_each), token_budget=40, batch_invariant=True)
    lane = engine.scheduler.lanes["m"]
    outputs = finish_all_set_back(engine, day, lane, 300) if set_back else finish_all(engine, day)
    assert outputs.tokens == alone
    assert (lane.preemptions > 0) == (set_back or positions == 112)
    assert positions == 112 or sum(done.usage.cached_tokens or 0 for done in outputs.done.values()) > 50


def test_without_parameters_a_canvas_is_refined_as_published_or_as_its_generation_config_says(
    folder: Path, tmp_path: Path
) -> None:
    reference(folder)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = tmp_path / "generation_config.json"
    settings.unlink(missing_ok=True)
    own = {"max_denoising_steps": 9, "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.2}}
    settings.write_text(json.dumps({**own, "t_max": 0.9}))
    named = procedure_parameters(engine_of(tmp_path).models["m"].card, None)[1]
    assert {"steps": 9, "entropy_bound": 0.2, "t_max": 0.9, "t_min": 0.4}.items() <= named.items()
    settings.write_text(json.dumps({"t_max": 0.2}))
    with pytest.raises(ModelError, match=r"m: generation_config.json: .*t_max is at least t_min"):
        engine_of(tmp_path)
    settings.write_text(json.dumps({"sampler_config": {"_cls_name": "AnotherSamplerConfig"}}))
    with pytest.raises(ModelError, match="sampler_config must be an EntropyBoundSamplerConfig"):
        engine_of(tmp_path)
    card = engine_of(folder).models["m"].card
    assert card.procedures == ["block_diffusion"] and card.drafters == []
    name, parameters = procedure_parameters(card, None)
    published = {"entropy_bound": 0.1, "steps": 48, "t_max": 0.8, "t_min": 0.4, "confidence_threshold": 0.005}
    assert name == "block_diffusion" and published.items() <= parameters.items() and parameters["stability_threshold"] == 1
    assert procedure_parameters(card, {"rule": "entropy_bound", "steps": 7})[1]["steps"] == 7
    assert procedure_parameters(card, {"rule": "uniform"})[1]["t_max"] is None
    with pytest.raises(InvalidField, match="threshold reads a part of a canvas"):
        procedure_parameters(card, {"rule": "threshold"})
    with pytest.raises(InvalidField, match="next"):
        procedure_parameters(card, {"name": "autoregressive"})


def test_what_a_canvas_was_drawn_from_is_finite_at_any_heat(folder: Path) -> None:
    reference(folder)
    engine = engine_of(folder)
    given = {"name": "block_diffusion", **PUBLISHED, "t_max": 1e-39, "t_min": 1e-39}
    parameters = procedure_parameters(engine.models["m"].card, given)[1]
    outputs = finish_all(engine, [submit("a", prompt_of(15), 12, parameters=parameters, temperature=1.0, seed=1)])
    assert not outputs.failed and len(outputs.tokens["a"]) == 12
