"""What a worker relies on is checked here, before a request crosses to the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from service.engine.latent_rows import sampler_parameters, takes_guidance
from service.engine.messages import ModelCard, TextWork
from service.procedures.block_diffusion_parameters import REREADING_RULES, BlockDiffusionParameters, Rule
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES, Procedure
from service.procedures.tables import SamplerTable
from service.procedures.types import Axis


class InvalidField(ValueError):
    """A client's mistake: the field (dotted), and what is wrong with it and what is allowed."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def procedure_parameters(card: ModelCard, procedure: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The procedure's name and its complete parameters, defaults filled in.

    Raises InvalidField when the procedure is unknown, when the model's signature lacks what it needs, or when a
    parameter is unknown, mistyped or out of range.
    """
    raw = dict(procedure or {})
    name = raw.pop("name", card.default_procedure)
    if name == card.default_procedure:
        raw = {**card.procedure_defaults, **raw}
    elif "guidance" in card.procedure_defaults:  # a scale is the network's, whatever the sampler; a number of steps is not
        raw = {"guidance": card.procedure_defaults["guidance"], **raw}
    spec = PROCEDURES.get(name) if isinstance(name, str) else None
    if spec is None:
        raise InvalidField("procedure.name", f"unknown procedure {name!r:.80}; {card.name} can run: {', '.join(card.procedures)}")
    if spec.kind != card.kind:
        raise InvalidField("procedure.name", f"{name} makes {spec.kind}, but {card.name} is a model for {card.kind}")
    if not spec.needs & set(card.signature):
        raise InvalidField(
            "procedure.name",
            f"{name} needs a network that offers {' or '.join(sorted(spec.needs))}; "
            f"{card.name} offers {', '.join(card.signature)}. "
            f"Without that argument the network cannot know where the move ends. It can run: {', '.join(card.procedures)}",
        )
    if len(card.block_lengths) == 1 and "block_length" in spec.parameters.__struct_fields__:
        raw.setdefault("block_length", card.block_lengths[0])
    if issubclass(spec.parameters, BlockDiffusionParameters):
        rule = card.canvas_defaults.get("rule")
        raw = {**card.canvas_defaults, **raw} if raw.get("rule", rule) == rule else raw
    try:
        parameters = msgspec.convert(raw, spec.parameters, strict=True)
    except msgspec.ValidationError as error:
        raise explained(error, raw, spec.parameters, "procedure") from None
    block_length = getattr(parameters, "block_length", None)
    if block_length is not None and card.block_lengths and block_length not in card.block_lengths:
        allowed = ", ".join(map(str, card.block_lengths))
        raise InvalidField("procedure.block_length", f"block_length {block_length} is not one that {card.name} knows: {allowed}")
    if isinstance(parameters, BlockDiffusionParameters):
        _check_noise(card, parameters)
    drafter = getattr(parameters, "drafter", None)
    if drafter is not None and drafter not in card.drafters:
        raise InvalidField("procedure.drafter", f"{card.name} has no drafter {drafter}; it has: {', '.join(card.drafters)}")
    if isinstance(parameters, SamplerParameters):
        _check_sampler(card, spec, parameters)
    return name, msgspec.to_builtins(parameters)


def _check_sampler(card: ModelCard, spec: Procedure, parameters: SamplerParameters) -> None:
    """Raises InvalidField for a table that this model's noise does not allow, and guidance that its network does not know."""
    try:
        table = parameters.table(card.noise, _tokens(card))
    except ValueError as error:
        raise InvalidField("procedure", f"{spec.name} with these parameters cannot be run by {card.name}: {error}") from None
    if parameters.reuse_threshold and not card.reuses:
        raise InvalidField(
            "procedure.reuse_threshold",
            f"{card.name} has no blocks that could be left out: it is no transformer, or one that the CPU kernel runs as a whole",
        )
    guidance = parameters.guidance
    if card.guidance_range is not None and takes_guidance(card, table.takes_target):
        low, high = card.guidance_range
        if not low <= guidance <= high:
            raise InvalidField(
                "procedure.guidance",
                f"{card.name} takes guidance as an input and knows {low:g} to {high:g}, not {guidance:g}",
            )


def _check_noise(card: ModelCard, parameters: BlockDiffusionParameters) -> None:
    """Raises InvalidField for a rule that goes back to a kind of noise which the network was not trained with."""
    if card.conditioned and parameters.rule not in REREADING_RULES:
        raise InvalidField(
            "procedure.rule",
            f"{parameters.rule} reads a part of a canvas, and {card.name} takes in what was read of all of it; allowed: "
            f"{', '.join(REREADING_RULES)}",
        )
    if parameters.confidence_threshold is not None and card.mask_token_id is not None:
        raise InvalidField(
            "procedure.confidence_threshold",
            f"confidence_threshold is for networks whose noise is random tokens; that of {card.name} is a mask token",
        )
    noise, other = ("random tokens", "remask") if card.mask_token_id is None else ("a mask token", "uniform")
    if parameters.rule == other:
        rules = ", ".join(rule for rule in get_args(Rule) if rule != other)
        raise InvalidField(
            "procedure.rule", f"{other} needs another noise than that of {card.name}, which is {noise}; allowed: {rules}"
        )


def check_next_token(procedure: str, work: TextWork, fields: Mapping[str, str]) -> None:
    """Raises InvalidField where the work needs tokens drawn one after another and the procedure sets several together.
    `fields` are the client's names for `logprobs` and `grammar`. A prompt is scored by nothing but the next token's
    distribution."""
    if work.score_prompt and procedure != "autoregressive":
        raise InvalidField("echo", f"echo with logprobs needs the procedure autoregressive, not {procedure}")
    if Axis.REFINE not in PROCEDURES[procedure].axes:
        return
    wanted = "logprobs" if work.logprobs is not None else "grammar" if work.grammar else None
    if wanted is not None:
        field = fields[wanted]
        raise InvalidField(field, f"{field} needs tokens that are drawn one after another; {procedure} sets several together")


def refinement_rows(card: ModelCard, procedure: str, parameters: Mapping[str, Any], size: tuple[int, int]) -> int:
    """Rows that refine a picture: those of its sampler table, as often as it runs."""
    typed, tokens = sampler_parameters(procedure, parameters), card.tokens(*size)
    return len(typed.table(card.noise, tokens)) * typed.rounds(tokens)


def check_negative(card: ModelCard, procedure: str, parameters: Mapping[str, Any]) -> None:
    """Raises InvalidField where a negative prompt would change nothing: it stands in for the empty caption of guidance."""
    reason = None
    table = table_of(card, procedure, parameters)
    if table and takes_guidance(card, table.takes_target):
        tables = {name: table_of(card, name, {}) for name in card.procedures}
        able = [name for name, table in tables.items() if table and not takes_guidance(card, table.takes_target)]
        instead = f"; these take a negative prompt: {', '.join(able)}" if able else ""
        reason = f"{procedure} takes guidance as an input of the network{instead}"
    elif parameters["guidance"] == 1.0:
        reason = "guidance 1 is no guidance, and has no use for a negative prompt"
    if reason is not None:
        raise InvalidField("negative_prompt", reason)


def makes_tokens(procedure: object) -> bool:
    """Whether a procedure makes pictures token by token: there is no latent to start from, to search among or to hasten."""
    spec = PROCEDURES.get(procedure) if isinstance(procedure, str) else None
    return spec is not None and spec.kind == "image" and Axis.EXPAND in spec.axes


def table_of(card: ModelCard, procedure: str, parameters: Mapping[str, Any]) -> SamplerTable | None:
    """For a picture of the default size; None where the model's noise allows none."""
    try:
        return sampler_parameters(procedure, parameters).table(card.noise, _tokens(card))
    except ValueError:
        return None


def _tokens(card: ModelCard) -> int:
    return card.tokens(*card.sizes.default) if card.sizes else 0


def explained(
    error: msgspec.ValidationError, given: Mapping[str, Any], parameters: type[msgspec.Struct], place: str
) -> InvalidField:
    """The client's mistake in the object `place`. msgspec names the field as "... - at `$.steps`", an unknown or a missing one in
    the text, and what a struct checks itself in its first word."""
    text = str(error)
    where = re.search(r"at `\$\.?([^`]*)`", text)
    unknown = re.search(r"unknown field `([^`]*)`", text)
    own = re.match(r"`(\w+)`", text)
    missing = re.search(r"missing required field `([^`]+)`", text)
    field = next((found.group(1) for found in (where, unknown, missing, own) if found and found.group(1)), "")
    problem = text.split(" - at ")[0]
    if field in given and not unknown:
        schema = msgspec.json.schema(parameters)["$defs"][parameters.__name__]
        allowed = schema["properties"][field].get("enum", [])
        problem += f" (given: {given[field]!r:.80}{'; allowed: ' + ', '.join(allowed) if allowed else ''})"
    return InvalidField(f"{place}.{field}" if field else place, f"{field}: {problem}" if field else problem)
