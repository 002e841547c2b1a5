"""OpenAI's words where the Responses API has others than chat completions."""

from __future__ import annotations

from starlette.routing import Route

from maestrale.api.backend import Backend
from maestrale.api.dialect import Operation, Reference
from maestrale.api.openai.dialect import REFERENCE, OpenAI
from maestrale.api.openai.responses.routes import routes
from maestrale.api.openai.responses.schemas import (
    IGNORED_FIELDS,
    OF_CHATS,
    UNSUPPORTED_FIELDS,
    ResponsesRequest,
)
from maestrale.errors import Location, Sent


class Responses(OpenAI):
    """OpenAI's dialect at /v1/responses."""

    paths = ("/v1/responses", "/responses")

    def routes(self, backend: Backend) -> list[Route]:
        return routes(backend)

    def locate(self, location: Location) -> Sent:
        match location:
            case ("constraint", *rest):
                return Sent("text", "format", "schema", *rest)
            case ("logprobs",):
                return Sent("top_logprobs")
            case ("max_tokens",):
                return Sent("max_output_tokens")
            case ("messages", *_):
                return Sent("input")
            case _:
                return Sent(*location)

    def reference(self) -> Reference:
        return Reference(
            operations=(
                Operation(
                    "post",
                    "/v1/responses",
                    "Answer items, whole, as events, or in the background.",
                    ResponsesRequest,
                ),
                Operation(
                    "get",
                    "/v1/responses/{response_id}",
                    "A kept response; with stream=true its events, after starting_after.",
                ),
                Operation(
                    "delete", "/v1/responses/{response_id}", "Let it go, with what it answers."
                ),
                Operation(
                    "post",
                    "/v1/responses/{response_id}/cancel",
                    "Stop a response that is made in the background.",
                ),
                Operation(
                    "get",
                    "/v1/responses/{response_id}/input_items",
                    "The items that it answers: after, limit, order.",
                ),
            ),
            error_schema=REFERENCE.error_schema,
            notes={
                "Accepted in responses, and without effect": IGNORED_FIELDS,
                "Refused in responses, unless empty": UNSUPPORTED_FIELDS,
                "Of chat completions, refused in responses": OF_CHATS,
            },
        )
