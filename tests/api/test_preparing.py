"""From a body to the engine's numbers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.api.preparing import sampling
from service.api.sampling_schemas import SamplingFields
from service.api.schemas import MOST_ADAPTERS, AdapterPart, PictureFields
from service.engine.messages import ModelCard


@pytest.mark.parametrize("given,meant", [(0.0, 0.0), (1e-40, 0.0), (9.9e-6, 0.0), (1e-5, 1e-5), (0.7, 0.7)])
def test_a_temperature_that_would_leave_float32_is_zero_whoever_says_it(given: float, meant: float) -> None:
    parts = ("m", "text", "", [], [], "autoregressive", 1, 10, 10)
    assert sampling(ModelCard(*parts), SamplingFields(temperature=given)).temperature == meant
    assert sampling(ModelCard(*parts, sampling_defaults={"temperature": given}), SamplingFields()).temperature == meant


def test_a_row_has_no_more_adapters_than_it_can_be_computed_with() -> None:
    assert len(PictureFields(lora=[AdapterPart(name="a")] * MOST_ADAPTERS).adapters()) == MOST_ADAPTERS
    with pytest.raises(ValidationError, match="at most 16"):
        PictureFields(lora=[AdapterPart(name="a")] * (MOST_ADAPTERS + 1))
