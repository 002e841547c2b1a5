"""What of a conversation the model's context has room for (`truncation: auto`)."""

from __future__ import annotations

from collections.abc import Sequence

from maestrale.api.answering import serving_of
from maestrale.api.backend import Backend
from maestrale.api.context import RequestContext
from maestrale.api.openai.other_names import with_own_names
from maestrale.api.openai.responses.items import Item
from maestrale.api.openai.responses.reading import conversation_of, response_options
from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.api.openai.responses.truncation import truncated
from maestrale.errors import ContextLengthExceeded

LEAST_ROOM = 256  # tokens that are left for an answer whose length is open


async def fitted(
    backend: Backend, context: RequestContext, body: ResponsesRequest, items: Sequence[Item]
) -> Sequence[Item]:
    """The items that the model's context has room for, beside the answer."""
    deployment = backend.find(context, body.model)
    service = await deployment.service()
    serving = serving_of(backend, deployment, service)
    body, _ = with_own_names(body, serving, length="max_output_tokens", least=1)
    options, _ = response_options(body, serving)
    limit = service.context_length
    room = min(body.max_output_tokens or LEAST_ROOM, limit // 2)

    async def fits(left: Sequence[Item]) -> bool:
        conversation, _ = conversation_of(body, left)
        try:
            prompt = await service.prompt(conversation, options)
        except ContextLengthExceeded:
            return False
        return len(prompt.token_ids) + room <= limit

    return await truncated(items, fits)
