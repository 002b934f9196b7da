"""What a client sees of one text output: text up to its stop string, the tokens behind it, why it ended."""

from __future__ import annotations

from service.api.running import Job
from service.api.schemas import SamplingFields
from service.api.text import Detokenizer, StopScanner, TextCodec
from service.engine.messages import Done, Tokens


class TextOutput:
    """Feed it Tokens, then Done; it gives the text that may be shown."""

    def __init__(self, job: Job, index: int, codec: TextCodec, body: SamplingFields) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.done: Done | None = None
        self._job = job
        self._index = index
        self._detokenizer = Detokenizer(codec)
        self._scanner = StopScanner(body.stops())
        self._min_tokens = body.min_tokens

    @property
    def finish_reason(self) -> str:
        assert self.done is not None
        return "stop" if self._scanner.hit else self.done.finish_reason

    def feed(self, event: Tokens | Done) -> tuple[str, list[int]]:
        """The newly visible text, and the tokens that came with it. Ends the request at a stop string."""
        if self._scanner.hit:
            if isinstance(event, Done):
                self.done = event
            return "", []
        if isinstance(event, Done):
            self.done = event
            shown = self._scanner.push(self._detokenizer.push([], last=True), last=True)
            fresh: list[int] = []
        else:
            fresh = event.token_ids
            self.token_ids += fresh
            shown = self._detokenizer.push(fresh)
            if len(self.token_ids) >= self._min_tokens:
                shown = self._scanner.push(shown)
        if self._scanner.hit and not isinstance(event, Done):
            self._job.stop(self._index)
        self.text += shown
        return shown, fresh
