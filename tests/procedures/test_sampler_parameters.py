"""What a client may ask of a sampler, and what a table or grid refuses."""

from __future__ import annotations

import msgspec
import pytest

from service.procedures.heun import heun
from service.procedures.parameters import (
    ConsistencyParameters,
    DdimParameters,
    DdpmParameters,
    Dpmpp2mParameters,
    EulerAncestralParameters,
    EulerParameters,
    FlowMapParameters,
    HeunParameters,
    RestartParameters,
    SamplerParameters,
    UnipcParameters,
)
from service.procedures.tables import Grid, Row, SamplerTable, flow_grid

EVALUATIONS = [
    (EulerParameters, 5),
    (HeunParameters, 9),
    (DdimParameters, 5),
    (Dpmpp2mParameters, 5),
    (DdpmParameters, 5),
    (EulerAncestralParameters, 5),
    (UnipcParameters, 5),
    (FlowMapParameters, 5),
    (RestartParameters, 6),
    (ConsistencyParameters, 5),
]


@pytest.mark.parametrize(("parameters", "rows"), EVALUATIONS)
def test_decoded_parameters_make_a_table_from_noise_to_data(parameters: type[SamplerParameters], rows: int) -> None:
    table = msgspec.json.decode(b'{"steps": 5, "shift": 2, "guidance": 0}', type=parameters).table()
    assert len(table) == rows
    assert table.t[0] == 1.0 and table.s[-1] == 0.0
    assert table.takes_target == (parameters in (FlowMapParameters, ConsistencyParameters, RestartParameters))
    assert table.d[-1] == 0.0


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": 0}', '{"steps": 1001}', '{"steps": 2.5}', '{"guidance": -0.1}', '{"guidance": 31}',
        '{"shift": 0}', '{"shift": 21}', '{"eta": 1.1}', '{"stpes": 3}', '{"guidance": 1e999}', '{"guidance": NaN}',
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=DdimParameters)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="guidance"):
        msgspec.convert({"guidance": number}, EulerParameters)


def test_euler_has_no_eta() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `eta`"):
        msgspec.convert({"eta": 0.0}, EulerParameters)


@pytest.mark.parametrize(("parameters", "rows"), EVALUATIONS)
def test_every_schedule_that_is_allowed_has_a_table(parameters: type[SamplerParameters], rows: int) -> None:
    for steps in (1, 2, 1000):
        for shift in (0.1, 1.0, 20.0):
            parameters(steps=steps, shift=shift).table()


def test_a_grid_that_does_not_go_from_noise_to_data_is_refused() -> None:
    with pytest.raises(ValueError, match="must fall"):
        flow_grid(2, times=[0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="last node"):
        flow_grid(1, times=[1.0, 0.5])
    with pytest.raises(ValueError, match="need 3 times"):
        flow_grid(2, times=[1.0, 0.0])
    with pytest.raises(ValueError, match="prediction"):
        Grid((0.0, 1.0), (1.0, 0.0), (1.0, 0.0), "score")  # type: ignore[arg-type]


def test_a_table_with_holes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        SamplerTable.from_rows([])
    with pytest.raises(ValueError, match="column b"):
        SamplerTable.from_rows([Row(t=1.0, s=0.0, b=float("nan"))])


def test_heun_refuses_pure_noise_where_it_integrates_over_sigma_by_alpha() -> None:
    with pytest.raises(ValueError, match="infinite at pure noise"):
        heun(Grid((0.0, 0.8, 1.0), (1.0, 0.6, 0.0), (2.0, 1.0, 0.0), "v"))
