"""generation_config.json: where a text ends, and how its author wants tokens to be drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("stride.models")

BOUNDS = {
    "temperature": (lambda x: x >= 0, "0 or more"),
    "top_k": (lambda x: x >= 0 and x == int(x), "a whole number, 0 or more"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda x: x > 0, "above 0"),
}
UNUSED = {
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "sequence_bias", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams", "penalty_alpha",
    "encoder_repetition_penalty", "exponential_decay_length_penalty", "min_new_tokens", "min_length",
}  # fmt: skip
NEUTRAL: tuple[Any, ...] = (None, 0, 1, 0.0, 1.0, [], {}, False)


CANVAS = {
    "t_max": "t_max", "t_min": "t_min", "max_denoising_steps": "steps", "stability_threshold": "stability_threshold",
    "confidence_threshold": "confidence_threshold",
}  # fmt: skip
"""DiffusionGemma's settings, by the names of parameters of `block_diffusion`."""


@dataclass(frozen=True)
class GenerationConfig:
    """`eos_token_ids` None: the file does not say. `sampling`: defaults by the names of a request's fields; `canvas` by those
    of the parameters of `block_diffusion`."""

    eos_token_ids: tuple[int, ...] | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    canvas: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, json: Mapping[str, Any], model: str) -> GenerationConfig:
        """`do_sample: false` is temperature 0. Raises ValueError for a number out of its range; logs, by name, the
        settings that ask for something that no request can ask for here."""
        sampling: dict[str, float] = {}
        for key, (good, allowed) in BOUNDS.items():
            value = json.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not good(value):
                raise ValueError(f"{key} must be {allowed}, not {value!r}")
            sampling[key] = value
        if json.get("do_sample") is False:
            sampling = {key: value for key, value in sampling.items() if key == "repetition_penalty"} | {"temperature": 0.0}
        ignored = sorted(key for key in UNUSED if json.get(key) not in NEUTRAL)
        if ignored:
            log.warning("%s: generation_config.json: these have no effect: %s", model, ", ".join(ignored))
        canvas = {name: json[key] for key, name in CANVAS.items() if json.get(key) is not None}
        if (sampler := json.get("sampler_config")) is not None:
            if not isinstance(sampler, Mapping) or sampler.get("_cls_name") != "EntropyBoundSamplerConfig":
                raise ValueError(f"sampler_config must be an EntropyBoundSamplerConfig, not {sampler!r:.80}")
            canvas["entropy_bound"] = sampler.get("entropy_bound")
        if wrong := sorted(name for name, value in canvas.items() if not isinstance(value, int | float) or value < 0):
            raise ValueError(f"{wrong[0]} must be a number, 0 or more, not {canvas[wrong[0]]!r}")
        return cls(token_ids("eos_token_id", json.get("eos_token_id")), sampling, canvas)


def token_ids(key: str, value: Any) -> tuple[int, ...] | None:
    """One id or a list of them; None is None. Raises ValueError."""
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in listed):
        raise ValueError(f"{key} must be a token id or a list of them, not {value!r}")
    return tuple(listed)
