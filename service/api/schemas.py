"""Bodies of the routes that are not chat's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag

from service.api.body import Body, Number, Part, TokenIds
from service.api.sampling_schemas import SamplingFields
from service.engine.choosing import QUALITIES, Quality

Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Priority = Annotated[StrictInt, Field(ge=-(2**31), lt=2**31, description="lower runs first")]
LikeliestCount = Annotated[StrictInt, Field(ge=0, le=20)]
NO_EFFECT = "accepted; has no effect"
OpenAIQuality = Literal["auto", "low", "medium", "high", "standard", "hd"]
OPENAI_QUALITIES: dict[str, Quality | None] = {
    "auto": None, "low": "draft", "medium": "balanced", "standard": "balanced", "high": "best", "hd": "best",
}  # fmt: skip


def _kind_of_prompt(raw: Any) -> str | None:
    """By its first element, so that an error is about the one kind that the client meant."""
    if not isinstance(raw, list):
        return "text" if isinstance(raw, str) else None
    kinds = {str: "texts", list: "lists of token ids", int: "token ids", bool: "token ids"}
    return kinds.get(type(raw[0])) if raw else "token ids"


Prompt = Annotated[
    Annotated[StrictStr, Tag("text")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[StrictStr], Field(fail_fast=True), Tag("texts")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("lists of token ids")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    ),
]


class Served(Body):
    """What every generating route takes."""

    model: StrictStr
    n: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    seed: Seed | None = None
    stream: StrictBool = False
    procedure: StrictStr | dict[str, Any] | None = Field(None, description="name, or {name, ...parameters}")
    priority: Priority = 0
    deadline_ms: Annotated[Number, Field(gt=0, le=86_400_000)] | None = None
    user: StrictStr | None = Field(None, description=NO_EFFECT)
    metadata: dict[str, Any] | None = Field(None, description=NO_EFFECT)

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        "store": ((False,), "nothing is stored"),
        "service_tier": (("auto", "default"), "use priority"),
    }

    def choice(self) -> dict[str, Any] | None:
        return {"name": self.procedure} if isinstance(self.procedure, str) else self.procedure


class StreamOptions(Part):
    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = Field(False, description="vLLM's: usage so far in every chunk")

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {"include_obfuscation": ((False,), "chunks are as they are")}


class TextFields(Served, SamplingFields):
    """What completions and chat completions share."""

    stream_options: StreamOptions | None = None
    return_token_ids: StrictBool = False

    def candidates(self) -> int:
        """Outputs that are made for each prompt."""
        return self.n


class CompletionBody(TextFields):
    prompt: Prompt
    max_tokens: Annotated[StrictInt, Field(ge=0, description="0, with echo: the prompt alone, to score it")] = 16
    echo: StrictBool = False
    best_of: Annotated[StrictInt, Field(ge=1, le=128, description="the n with the highest mean logprob of so many")] | None = None
    logprobs: LikeliestCount | None = None
    add_special_tokens: StrictBool = Field(True, description="what the tokeniser puts around a text of itself")

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **Served.REFUSED, "suffix": (("",), "no served model fills in the middle"),
    }  # fmt: skip

    def scores(self) -> bool:
        """Whether the prompt's tokens get log-probabilities too."""
        return self.echo and self.logprobs is not None

    def prompts(self) -> list[str | list[int]]:
        """One or several, each text or token ids."""
        if isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)

    def candidates(self) -> int:
        return self.best_of or self.n

    def likeliest(self) -> int | None:
        ranked = self.best_of is not None and self.best_of > self.n
        return 0 if self.logprobs is None and ranked else self.logprobs


MOST_ADAPTERS = 16


class AdapterPart(Part):
    name: StrictStr
    scale: Annotated[Number, Field(ge=-10, le=10)] = 1.0


class PictureFields(Part):
    """What a picture is made from, beside its text."""

    size: StrictStr | None = Field(None, description="WIDTHxHEIGHT, or auto")
    negative_prompt: StrictStr | None = None
    image: StrictStr | None = Field(None, description="base64 or data URL of the picture to start from")
    mask: StrictStr | None = Field(None, description="the same, white where the picture is to change")
    quality: Quality | None = Field(None, description="chooses procedure and steps, instead of them")
    lora: list[AdapterPart] = Field([], max_length=MOST_ADAPTERS, description="adapters, as /v1/models lists them")
    search: dict[str, Any] | None = Field(
        None, description="{method: best_of, candidates, scorer} or {method: particles, particles, scorer, temperature, ...}"
    )

    def adapters(self) -> list[tuple[str, float]]:
        return [(part.name, float(part.scale)) for part in self.lora]


class ImageBody(Served, PictureFields):
    prompt: StrictStr
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    partial_images: Annotated[StrictInt, Field(ge=0, le=3)] = 0
    num_inference_steps: StrictInt | None = None
    guidance_scale: Number | None = None
    strength: Number | None = Field(None, description="how far the given picture may change, 0 to 1")
    quality: Literal[Quality, OpenAIQuality] | None = Field(  # type: ignore[assignment]
        None, description="chooses procedure and steps, instead of them; auto is as if it were not given"
    )

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **Served.REFUSED, "background": (("auto", "opaque"), "pictures have no transparency"),
        "moderation": (("auto", "low"), "nothing is moderated"), "style": ((), "say it in the prompt"),
        "output_compression": ((100, "100"), "choose the output_format"), "input_fidelity": ((), "use strength"),
    }  # fmt: skip

    def asked_quality(self) -> Quality | None:
        """OpenAI's words for it, those of all its models, as ours."""
        word = self.quality
        return word if word in QUALITIES else OPENAI_QUALITIES.get(word or "auto")


class GenerateBody(Served, SamplingFields, PictureFields):
    prompt: StrictStr | None = None
    input_tokens: TokenIds | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: LikeliestCount | None = None
    preview_every: Annotated[
        StrictInt, Field(ge=0, le=10_000, description="evaluations between previews, with stream; 0 is none")
    ] = 0

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **Served.REFUSED, "strength": ((), 'here it is a parameter of procedure: {"strength": ...}'),
        "num_inference_steps": ((), 'here it is a parameter of procedure: {"steps": ...}'),
        "guidance_scale": ((), 'here it is a parameter of procedure: {"guidance": ...}'),
    }  # fmt: skip

    def likeliest(self) -> int | None:
        return self.logprobs


class TokenizeBody(Body):
    model: StrictStr
    prompt: StrictStr


class DetokenizeBody(Body):
    model: StrictStr
    tokens: TokenIds
