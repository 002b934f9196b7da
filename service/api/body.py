"""What the bodies of all requests have in common: strict, complete, nothing ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator

from service.api.errors import ApiError, not_supported

Number = StrictFloat | StrictInt
TokenId = Annotated[StrictInt, Field(ge=0)]
# One wrong element is enough to say: a list of a million would otherwise give a million errors.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
DEEPEST = 100


class Part(BaseModel):
    """An object of a body. A field that is null is one that is not given, as OpenAI's clients have it.

    `REFUSED` are fields of OpenAI's that are not there: the values that ask for nothing, and what to do instead.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _given(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        known = {field.alias or name for name, field in cls.model_fields.items()}
        out, unknown = {}, 0
        for name, value in raw.items():
            if name in cls.REFUSED:
                harmless, instead = cls.REFUSED[name]
                if value is not None and not any(value == other and type(value) is type(other) for other in harmless):
                    raise not_supported(name, instead)
            elif value is not None:
                unknown += name not in known
                if name in known or unknown == 1:  # one unknown field is enough to say
                    out[name] = value
        return out


class Body(Part):
    """A whole body."""

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            check_text_and_depth(raw)
        return raw


Place = tuple["Place", str | int] | None


def check_text_and_depth(body: Any) -> None:
    """Raises ApiError with the field that is nested too deep, or that holds half of a surrogate pair: JSON can spell it,
    but it is no text."""
    left: list[tuple[Any, Place, int]] = [(body, None, 0)]
    while left:
        value, place, depth = left.pop()
        if depth > DEEPEST:
            field = _dotted(place).split(".")[0]
            raise ApiError(400, f"{field} is nested deeper than {DEEPEST}", field, "invalid_value")
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(name, str) and not is_text(name):
                raise _half_character(_dotted(place))
            if isinstance(item, str):
                if not is_text(item):
                    raise _half_character(_dotted((place, name)))
            elif item and isinstance(item, dict | list):
                left.append((item, (place, name), depth + 1))


def _dotted(place: Place) -> str:
    names: list[str] = []
    while place is not None:
        place, name = place
        names.append(str(name))
    return ".".join(reversed(names))


def _half_character(place: str) -> ApiError:
    message = f"{place or 'the body'} holds half of a surrogate pair, which is no text"
    return ApiError(400, message, place or None, "invalid_value")


def is_text(value: str) -> bool:
    """False where it holds half of a surrogate pair, which cannot be sent."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
