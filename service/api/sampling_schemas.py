"""How tokens are drawn and what the text must look like: the fields that all text routes share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr

from service.api.body import Number, Part, TokenIds

StopString = Annotated[StrictStr, Field(min_length=1)]
Stop = StopString | Annotated[list[StopString], Field(max_length=16)]
Schema = dict[str, Any]
MOST_BIASES = 1024


def _few(raw: Any) -> Any:
    """Counted before each is looked at."""
    if isinstance(raw, dict) and len(raw) > MOST_BIASES:
        raise ValueError(f"at most {MOST_BIASES} tokens, not {len(raw)}")
    return raw


LogitBias = Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_few)]


class StructuredOutputs(Part):
    """vLLM's: exactly one of these, which the whole output then follows."""

    json_schema: Schema | StrictStr | None = Field(None, alias="json", description="a JSON Schema")
    json_object: StrictBool | None = Field(None, description="true: any JSON object")
    regex: Annotated[StrictStr, Field(min_length=1)] | None = Field(None, description="in the syntax of Rust's regex crate")
    choice: Annotated[list[StopString], Field(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[StrictStr, Field(min_length=1)] | None = Field(None, description="GBNF, or llguidance's Lark")


class JsonSchemaFormat(Part):
    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: StrictStr | None = None
    json_schema: Schema = Field({}, alias="schema")
    strict: StrictBool | None = Field(None, description="accepted; the schema is enforced either way")


class ResponseFormat(Part):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class SamplingFields(Part):
    """Where a model's generation_config.json names a default, it takes the place of the one here."""

    temperature: Annotated[Number, Field(ge=0, le=2, description="0, like all below 1e-5: the likeliest token")] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=-1, le=1_000_000)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] = 1.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logit_bias: LogitBias = {}
    min_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    ignore_eos: StrictBool = False
    stop_token_ids: Annotated[TokenIds, Field(max_length=64)] = []
    stop: Stop | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told at each place; None when no log-probabilities are wanted."""
        return None
