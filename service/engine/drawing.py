"""How one request's next tokens are drawn: what it has seen, what is banned, where it stands in its grammar."""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.engine.grammar import Following, GrammarError
from service.engine.messages import Submit, TextWork
from service.procedures.drafts import branch, pruned
from service.procedures.types import UNKNOWN, Draft, TokenState
from service.workers.occurrences import Occurrences
from service.workers.types import Draws, Penalties


@dataclass(slots=True, eq=False)
class Drawing:
    """`plain` holds while no token is banned, no grammar followed and nothing guessed."""

    plain: Draws
    grammar: Following | None
    _seen: Occurrences | None

    @classmethod
    def of(cls, submit: Submit, work: TextWork, grammar: Following | None) -> Drawing:
        sampling = work.sampling
        factors = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        seen = None if factors == (1.0, 0.0, 0.0) else Occurrences(len(work.prompt))
        plain = Draws(
            submit.seed, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
            None if seen is None else Penalties(seen, *factors), sampling.logit_bias, logprobs=work.logprobs,
        )  # fmt: skip
        return cls(plain, grammar, seen)

    @property
    def hangs_on_tokens(self) -> bool:
        """Whether how a token is drawn depends on which ones stand before it."""
        return self.grammar is not None or self._seen is not None

    def behind_unknown(self, state: TokenState) -> Draws:
        """How the token is drawn that stands behind one that is not known yet; for drawing that does not hang on tokens."""
        assert not self.hangs_on_tokens
        return self._behind(state, (UNKNOWN,), b"")

    def worth(self, state: TokenState, draft: Draft) -> Draft:
        """The guesses that can say anything: what ends the output is known from the draw before it."""
        draft = pruned(draft, [token not in state.stops for token in draft.tokens])
        if self.grammar is None or not draft.tokens:
            return draft
        try:
            return pruned(draft, self.grammar.follows(draft))
        except GrammarError:
            return Draft((), ())  # the grammar says so again of the next token, which ends the request

    def behind(self, state: TokenState, draft: Draft) -> list[Draws]:
        """How tokens are drawn behind all that is committed and behind each of the guesses, as if those before were right."""
        if self._seen is not None:
            self._seen.take(state.tokens)
        masks = [b""] * (len(draft.tokens) + 1)
        if self.grammar is not None:
            masks = [self.grammar.allowed(), *self.grammar.allowed_behind(draft)]
        paths = [tuple(draft.tokens[i] for i in branch(draft, at)) for at in range(-1, len(draft.tokens))]
        return [self._behind(state, path, mask) for path, mask in zip(paths, masks, strict=True)]

    def _behind(self, state: TokenState, guesses: tuple[int, ...], allowed: bytes) -> Draws:
        banned = tuple(state.stops) if len(state.tokens) + len(guesses) < state.floor else ()
        penalties = self.plain.penalties
        if self._seen is not None and penalties is not None and guesses:
            penalties = replace(penalties, seen=self._seen.ahead(guesses))
        if not banned and not allowed and penalties is self.plain.penalties:
            return self.plain
        return replace(self.plain, banned=banned, floor=state.floor, allowed=allowed, penalties=penalties)
