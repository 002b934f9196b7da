"""What the bodies of all requests have in common: strict, complete, nothing ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator

from service.api.errors import ApiError, not_supported

Number = StrictFloat | StrictInt
TokenId = Annotated[StrictInt, Field(ge=0)]


class Body(BaseModel):
    """A field that is null is one that is not given, as OpenAI's clients have it.

    `REFUSED` are fields of OpenAI's that are not there: the values that ask for nothing, and what to do instead.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _given(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        refuse_half_characters(raw)
        out = {}
        for name, value in raw.items():
            if name in cls.REFUSED:
                harmless, instead = cls.REFUSED[name]
                if value is not None and not any(value == other and type(value) is type(other) for other in harmless):
                    raise not_supported(name, instead)
            elif value is not None:
                out[name] = value
        return out


def refuse_half_characters(value: Any, place: str = "") -> None:
    """JSON can spell half of a surrogate pair, which is no text. Raises ApiError with the field that has one."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ApiError(
                400, f"{place or 'the body'} holds half of a surrogate pair, which is no text", place or None, "invalid_value"
            )
    elif isinstance(value, dict):
        for name, item in value.items():
            refuse_half_characters(name, place)
            refuse_half_characters(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_half_characters(item, f"{place}.{index}")
