"""One text request in OpenAI's words: how its chunks and its whole answer look, for completions and for chats."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from service.api import sse
from service.api.chat_schemas import ChatBody
from service.api.echo import Echo
from service.api.errors import ApiError
from service.api.logprobs import TokenBytes, chat_logprobs, completion_logprobs
from service.api.running import Job, total
from service.api.schemas import CompletionBody
from service.api.text_output import TextOutput
from service.api.tool_calls import CallBegins, Content, Piece, ToolCallParser
from service.api.tool_formats import ToolFormat, call_id
from service.engine.messages import Done, Scores, Tokens

Json = dict[str, Any]


class Exchange:
    """`outputs` are those of the engine: `candidates` for each prompt, of which the best n are shown."""

    kind = ""

    def __init__(
        self, job: Job, body: CompletionBody | ChatBody, outputs: list[TextOutput], fingerprint: str, bytes_of: TokenBytes
    ) -> None:
        self.job = job
        self.outputs = outputs
        self._asked = body
        self._fingerprint = fingerprint
        self._bytes_of = bytes_of
        self._created = int(time.time())
        self._told = [0] * len(outputs)

    async def whole(self) -> Json:
        async for item in self.job.events():
            if item is not None and isinstance(item[1], Tokens | Scores | Done):
                text, _ = self.outputs[item[0]].feed(item[1])
                self._watch(item[0], text)
        choices = [{"index": i, **self._choice(output)} for i, output in enumerate(self._best())]
        return {**self._envelope(self.kind, choices), "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[str]:
        options = self._asked.stream_options
        try:
            for index in range(len(self.outputs)):
                for chunk in self._first(index):
                    yield chunk
            async for item in self.job.events():
                if item is None:
                    yield sse.KEEP_ALIVE
                    continue
                index, event = item
                for chunk in self._following(index, event) if isinstance(event, Tokens | Scores | Done) else ():
                    yield chunk
            if options is not None and options.include_usage:
                yield sse.event({**self._envelope(self._chunk_kind, []), "usage": self._usage()})
            yield sse.event("[DONE]")
        except ApiError as error:
            yield sse.event(error.body())
        finally:
            self.job.cancel()

    def _watch(self, index: int, text: str) -> None:
        """Looks at the text of an answer that is not streamed as it comes."""

    def _following(self, index: int, event: Tokens | Scores | Done) -> list[str]:
        """The chunks that an event of the engine gives."""
        raise NotImplementedError

    def _first(self, index: int) -> list[str]:
        """The chunks that stand before all text."""
        raise NotImplementedError

    def _choice(self, output: TextOutput) -> Json:
        """A choice of the whole answer."""
        raise NotImplementedError

    @property
    def _chunk_kind(self) -> str:
        return self.kind

    def _best(self) -> list[TextOutput]:
        """The n outputs of each prompt with the highest mean log-probability, in that order; all where none is spare."""
        n, made = self._asked.n, self._asked.candidates()
        if made == n:
            return self.outputs
        groups = [self.outputs[at : at + made] for at in range(0, len(self.outputs), made)]
        return [each for group in groups for each in sorted(group, key=lambda output: -output.mean_logprob)[:n]]

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.job.id, "object": kind, "created": self._created, "model": self._asked.model,
            "system_fingerprint": self._fingerprint, "choices": choices,
        }  # fmt: skip

    def _event(self, index: int, reason: str | None, content: Json, tokens: Sequence[int] = ()) -> str:
        choice = {"index": index, **content, "finish_reason": reason}
        choice.setdefault("logprobs", None)
        if self._asked.return_token_ids:
            choice["token_ids"] = list(tokens)
        envelope = self._envelope(self._chunk_kind, [choice])
        options = self._asked.stream_options
        if options is not None and options.continuous_usage_stats:
            prompts = [len(work) for work in self.job.prompts[:: self._asked.candidates()]]
            made = sum(len(output.token_ids) for output in self.outputs)
            envelope["usage"] = {
                "prompt_tokens": sum(prompts), "completion_tokens": made, "total_tokens": sum(prompts) + made,
            }  # fmt: skip
        return sse.event(envelope)

    def _usage(self) -> Json:
        usages = [output.done.usage for output in self.outputs if output.done is not None]
        generated = sum(len(output.token_ids) for output in self.outputs)
        counts = total(usages, self._asked.candidates(), generated)
        prompt, cached = counts.get("prompt_tokens", 0), counts.get("cached_tokens", 0)
        return {
            **counts, "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip

    def _reason(self, output: TextOutput) -> str:
        """OpenAI has no word for an output that someone cancelled: it stopped."""
        return "length" if output.finish_reason == "length" else "stop"


class CompletionExchange(Exchange):
    """`echoes` are the prompts, empty where they are not echoed; one a prompt."""

    kind = "text_completion"

    def __init__(self, *common: Any, echoes: list[Echo]) -> None:
        super().__init__(*common)
        assert isinstance(self._asked, CompletionBody)
        self._body = self._asked
        self._echoes = [echo for echo in echoes for _ in range(self._body.candidates())]

    def _first(self, index: int) -> list[str]:
        echo = self._echoes[index]
        if echo.token_ids:
            return [self._scored(index, 0)]
        return [self._event(index, None, {"text": echo.text})] if echo.text else []

    def _scored(self, index: int, start: int) -> str:
        """The chunk of what is known of the prompt's tokens from `start` on; behind them, of the one that ended the output."""
        echo, output = self._echoes[index], self.outputs[index]
        told, text = echo.ending(output), ""
        if start < len(echo.token_ids):
            told = echo.told(output, start)
            text = echo.between(start, start + len(told.token_ids))
        return self._event(index, None, {"text": text, "logprobs": completion_logprobs(told, self._bytes_of)})

    def _following(self, index: int, event: Tokens | Scores | Done) -> list[str]:
        output = self.outputs[index]
        if isinstance(event, Scores):
            known = len(output.scores)
            output.feed(event)
            return [self._scored(index, known + 1)] if self._echoes[index].token_ids and len(output.scores) > known else []
        text, tokens = output.feed(event)
        done = isinstance(event, Done)
        chunks = []
        if text or (tokens and self._body.return_token_ids):
            chunks.append(self._event(index, None, {"text": text, **self._logprobs(index)}, tokens))
        if done:
            chunks.append(self._event(index, self._reason(output), {"text": "", **self._logprobs(index)}))
        return chunks

    def _logprobs(self, index: int) -> Json:
        """Of the tokens since the last chunk; theirs come with the text that they complete."""
        if self._body.logprobs is None:
            return {}
        fresh = self.outputs[index].tokenwise.since(self._told[index])
        self._told[index] += len(fresh.token_ids)
        placed = fresh.behind(len(self._echoes[index].text))
        return {"logprobs": completion_logprobs(placed, self._bytes_of) if fresh.token_ids else None}

    def _choice(self, output: TextOutput) -> Json:
        echo = self._echoes[self.outputs.index(output)]
        choice: Json = {"text": echo.text + output.text, "finish_reason": self._reason(output), "logprobs": None}
        if self._body.logprobs is not None:
            told = echo.told(output) + output.tokenwise.behind(len(echo.text)) + echo.ending(output)
            choice["logprobs"] = completion_logprobs(told, self._bytes_of)
        if self._body.return_token_ids:
            choice["token_ids"] = output.token_ids
        return choice


class ChatExchange(Exchange):
    """`form` is how the model writes tool calls; None when it is asked for none."""

    kind = "chat.completion"

    def __init__(self, *common: Any, form: ToolFormat | None) -> None:
        super().__init__(*common)
        assert isinstance(self._asked, ChatBody)
        self._body = self._asked
        self._form = form
        self._parsers = [self._parser() for _ in self.outputs]

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk"

    def _parser(self) -> ToolCallParser | None:
        if self._form is None:
            return None
        names = frozenset(tool.function.name for tool in self._body.tools)
        return ToolCallParser(self._form, names, self._body.parallel_tool_calls)

    def _first(self, index: int) -> list[str]:
        return [self._event(index, None, {"delta": {"role": "assistant", "content": ""}})]

    def _following(self, index: int, event: Tokens | Scores | Done) -> list[str]:
        output, parser = self.outputs[index], self._parsers[index]
        text, tokens = output.feed(event)
        done = isinstance(event, Done)
        deltas = [{"content": text}] if text else []
        if parser is not None:
            deltas = [self._delta(piece) for piece in parser.push(text, last=done)]
            self._stop_if_complete(index, parser)
        if tokens and self._body.return_token_ids and not deltas:
            deltas = [{}]
        chunks = []
        for i, delta in enumerate(deltas):
            own = (self._logprobs(index), tokens) if i == 0 else ({}, [])
            chunks.append(self._event(index, None, {"delta": delta, **own[0]}, own[1]))
        if done:
            chunks.append(self._event(index, self._ended(output, parser), {"delta": {}, **self._logprobs(index)}))
        return chunks

    def _watch(self, index: int, text: str) -> None:
        parser = self._parsers[index]
        if parser is not None and not self._body.parallel_tool_calls:
            parser.push(text)
            self._stop_if_complete(index, parser)

    def _stop_if_complete(self, index: int, parser: ToolCallParser) -> None:
        if parser.complete and self.outputs[index].done is None:
            self.job.stop(index)

    def _delta(self, piece: Piece) -> Json:
        if isinstance(piece, Content):
            return {"content": piece.text}
        call: Json = {"index": piece.index}
        if isinstance(piece, CallBegins):
            assert self._form is not None
            call |= {"id": call_id(self._form), "type": "function", "function": {"name": piece.name, "arguments": ""}}
        else:
            call["function"] = {"arguments": piece.text}
        return {"tool_calls": [call]}

    def _ended(self, output: TextOutput, parser: ToolCallParser | None) -> str:
        reason = self._reason(output)
        return "tool_calls" if reason == "stop" and parser is not None and parser.calls and not parser.broken else reason

    def _logprobs(self, index: int) -> Json:
        if not self._body.logprobs:
            return {}
        fresh = self.outputs[index].tokenwise.since(self._told[index])
        self._told[index] += len(fresh.token_ids)
        return {"logprobs": chat_logprobs(fresh, self._bytes_of) if fresh.token_ids else None}

    def _choice(self, output: TextOutput) -> Json:
        parser = self._parser()
        content: str | None = output.text
        calls: list[tuple[str, str]] = []
        if parser is not None:
            pieces = parser.push(output.text, last=True)
            # Cut off by its limit, a call is shown as far as it came; one that went wrong is shown as the text that it is.
            if not parser.broken or output.finish_reason == "length":
                content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
                calls = parser.calls
        message: Json = {"role": "assistant", "content": (content or None) if calls else content, "refusal": None}
        if calls:
            assert self._form is not None
            message["tool_calls"] = [
                {"id": call_id(self._form), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in calls
            ]
        choice: Json = {"message": message, "finish_reason": self._ended(output, parser), "logprobs": None}
        if self._body.logprobs:
            choice["logprobs"] = chat_logprobs(output.tokenwise, self._bytes_of)
        if self._body.return_token_ids:
            choice["token_ids"] = output.token_ids
        return choice
