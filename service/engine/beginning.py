"""What a message becomes: a request of one kind or another."""

from __future__ import annotations

from service.engine.expanding_request import ExpandingRequest
from service.engine.grammar import Following
from service.engine.image_request import ImageRequest
from service.engine.messages import ImageWork, ModelCard, Submit, TextWork
from service.engine.request import AnyRequest, TextRequest
from service.engine.search_request import SearchRequest
from service.procedures.registry import PROCEDURES
from service.procedures.types import Axis


def begin(message: Submit, card: ModelCard, block_size: int, grammar: Following | None = None) -> AnyRequest:
    """Raises KeyError, ValueError or AssertionError for what the front end should have refused."""
    if isinstance(message.work, TextWork):
        return TextRequest.begin(message, message.work, card, block_size, grammar)
    assert isinstance(message.work, ImageWork)
    if message.work.search is not None:
        return SearchRequest.begin(message, message.work, card)
    if Axis.EXPAND in PROCEDURES[message.procedure].axes:
        return ExpandingRequest.begin(message, message.work, card)
    return ImageRequest.begin(message, message.work, card)
