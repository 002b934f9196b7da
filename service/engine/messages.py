"""What crosses the border between the front end and the engine: msgspec structs, msgpack on the wire.

Times are seconds of the monotonic clock, which both processes of one machine share.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from service.engine.reports import Gauges, StageTime, Tick
from service.procedures.noise import NoiseProcess
from service.procedures.picture_rows import GuidanceInput
from service.procedures.quality import QualityTable
from service.procedures.search import Search
from service.procedures.sizes import SizeRule

FinishReason = Literal["stop", "length", "cancelled", "completed"]


class Sampling(msgspec.Struct, frozen=True):
    """How one token is drawn from the logits; temperature 0 is the argmax, top_k 0 and top_p 1 are off.

    In this order: repetition_penalty on every token of prompt and output, presence and frequency penalty on those of the
    output, `logit_bias` added, the grammar, temperature, top_k, top_p, min_p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}


class TextWork(msgspec.Struct, frozen=True, tag="text"):
    """A prompt to be expanded by at most `max_tokens` tokens.

    `logprobs` asks for the plain log-probability of every token and of that many of the likeliest at its place.
    `score_prompt` asks for those of the prompt's tokens as well; only then may `max_tokens` be 0, or where nothing is to
    be computed. `grammar`, where not empty, is what the whole output must follow, in llguidance's form.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_token_ids: list[int] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    revisions: bool = False
    logprobs: int | None = None
    grammar: str = ""
    score_prompt: bool = False


class ImageWork(msgspec.Struct, frozen=True, tag="image"):
    """A picture to be refined from noise or, where `image` is given, from that picture; with a `mask` only where it is not 0.

    Sides are in pixels; `image` is RGB bytes row by row, `mask` one byte a pixel. `adapters` are names and scales. A `search`
    makes several, and the best of them are its `outputs`. Previews come every so many rows or, if `previews` are wanted, after as
    many rows as give at least as many, whatever the number of rows is in the end.
    """

    prompt: str
    width: int
    height: int
    negative: str = ""
    preview_every: int = 0
    image: bytes = b""
    mask: bytes = b""
    adapters: list[tuple[str, float]] = []
    search: Search | None = None
    outputs: int = 1
    previews: int = 0


class Choice(msgspec.Struct, frozen=True):
    """A way to run a request for a picture: a procedure with all its parameters, which is `rows` moves and `nfe` evaluations."""

    procedure: str
    parameters: dict[str, Any]
    rows: int
    nfe: int


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """One state to carry to its end. A client request with n outputs is n of these, but for a search. `choices`, where there are
    any, are what its deadline may leave it, best first; that is the procedure that it names."""

    id: str
    model: str
    procedure: str
    parameters: dict[str, Any]
    seed: int
    work: TextWork | ImageWork
    arrived: float
    priority: int = 0
    deadline: float | None = None
    choices: list[Choice] = []


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """End a request now: `stop` when the front end saw a stop string, `cancelled` when nobody wants it any more."""

    id: str
    reason: FinishReason = "cancelled"


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave the loop after the current tick."""


ToEngine = Submit | Finish | Shutdown


class ProcedureCard(msgspec.Struct, frozen=True):
    """A procedure as `GET /v1/procedures` shows it; `parameters` is a JSON Schema."""

    name: str
    kind: Literal["text", "image"]
    axes: list[str]
    needs: list[str]
    summary: str
    parameters: dict[str, Any]


class ModelCard(msgspec.Struct, frozen=True):
    """What a served model is and can do. `folder` holds tokenizer.json and, for text, the chat template. `attention` and
    `shift` are those of `TokenState`, and so is `conditioned`; text that sees itself in blocks has one block length.

    `sampling_defaults` are generation_config.json's, by the names of `Sampling`, for requests that say nothing, and
    `canvas_defaults` parameters of `block_diffusion` for those that name no rule or the same. `drafters`
    are what can guess its tokens.

    Of models for pictures, `vocab_size` is 0 where texts are not checked before the engine has them; `noise` is what training
    did to data, `guidance_range` what scales of it are known as an input, `pixels_per_token` the side of what the network
    sees as one token; `procedure_defaults` are parameters for requests that name no procedure, or the default one, and
    their guidance is that of every other; it `reuses` what its blocks said in former steps where a request asks for it.
    `quality` is what was measured of its procedures, None where nothing was.
    """

    name: str
    kind: Literal["text", "image"]
    folder: str
    signature: list[str]
    procedures: list[str]
    default_procedure: str
    parameters_count: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int] = []
    mask_token_id: int | None = None
    block_lengths: list[int] = []
    attention: Literal["causal", "block", "full"] = "causal"
    shift: bool = False
    sizes: SizeRule | None = None
    pixels_per_token: int = 1
    noise: NoiseProcess = NoiseProcess()
    guidance_input: GuidanceInput = "no"
    guidance_range: tuple[float, float] | None = None
    procedure_defaults: dict[str, Any] = {}
    quality: QualityTable | None = None
    reuses: bool = False
    adapters: list[str] = []
    scorers: list[str] = []
    conditioned: bool = False
    sampling_defaults: dict[str, float] = {}
    canvas_defaults: dict[str, Any] = {}
    drafters: list[str] = []

    def tokens(self, width: int, height: int) -> int:
        """Length of a picture's sequence in the network."""
        return max(1, width * height // self.pixels_per_token**2)


class Usage(msgspec.Struct, frozen=True, omit_defaults=False):
    """What a request cost; None where it does not apply. Seconds. `planned_nfe` are the evaluations that it would have got
    without a deadline, `scored` the pictures that a search judged; `reused` of the `nfe` ran the network's first block alone."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    forwards: int | None = None
    tokens_per_forward: float | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    nfe: int | None = None
    planned_nfe: int | None = None
    scored: int | None = None
    reused: int | None = None
    queue_seconds: float = 0.0
    first_output_seconds: float | None = None
    total_seconds: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The models are loaded and memory is reserved."""

    models: list[ModelCard]


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities under the network's own logits, before any bias, penalty or filter: of the token,
    and of the likeliest at its place, likeliest first."""

    own: float
    top: list[tuple[int, float]] = []


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """Tokens that will not change any more. `logprobs` has one entry a token when the work asks for them. Where tokens are
    guessed, `drafted` guesses were verified in the forward that gave these, and so many of the first tokens `accepted`."""

    id: str
    token_ids: list[int]
    logprobs: list[Logprob] = []
    drafted: int | None = None
    accepted: int = 0


class Scores(msgspec.Struct, frozen=True, tag="scores"):
    """Log-probabilities of tokens that are no output: of work that scores its prompt, those of the prompt from its second on, in
    their order and each once; of all that is scored, the token that `ends` the output."""

    id: str
    token_ids: list[int]
    logprobs: list[Logprob]
    ends: bool = False


class Revision(msgspec.Struct, frozen=True, tag="revision"):
    """The provisional canvas from absolute position `start`; a masked position is None."""

    id: str
    start: int
    token_ids: list[int | None]


class Preview(msgspec.Struct, frozen=True, tag="preview"):
    """The model's present estimate of the picture, RGB bytes row by row; `t` runs from 1 (noise) to 0."""

    id: str
    step: int
    steps: int
    t: float
    width: int
    height: int
    rgb: bytes


class Found(msgspec.Struct, frozen=True):
    """A picture that a search chose, RGB bytes row by row, with the seed that gives it again."""

    seed: int
    score: float
    width: int
    height: int
    rgb: bytes


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A request's only good end. `rgb` is the picture of an image request, `ran` what its deadline left it, where that was chosen
    by the engine; the pictures of a search are `found`, the best first. `stages` say where its time went."""

    id: str
    finish_reason: FinishReason
    usage: Usage
    width: int = 0
    height: int = 0
    rgb: bytes = b""
    score: float | None = None
    seed: int | None = None
    found: list[Found] = []
    ran: dict[str, Any] = {}
    stages: list[StageTime] = []

    def each(self, outputs: int) -> list[Done]:
        """One end for each of the outputs; the first has what all of them cost."""
        if outputs == 1 and not self.found:
            return [self]
        times = {name: getattr(self.usage, name) for name in Usage.__struct_fields__ if name.endswith("_seconds")}
        again = Usage(**times)
        usages = [self.usage] + [again] * (outputs - 1)
        if not self.found:
            return [Done(self.id, self.finish_reason, usage) for usage in usages]
        return [
            Done(self.id, self.finish_reason, usage, one.width, one.height, one.rgb, one.score, one.seed)
            for usage, one in zip(usages, self.found, strict=True)
        ]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A request's only bad end: an HTTP status and the parts of OpenAI's error object."""

    id: str
    status: int
    code: str
    message: str
    param: str | None = None


FromEngine = Ready | Tokens | Scores | Revision | Preview | Done | Failed | Tick | Gauges
"""The engine sends lists of these, one list a tick."""
