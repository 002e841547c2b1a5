"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM's."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale.api.backend import Backend
from maestrale.api.openai.schemas import DetokenizeRequest, TokenizeRequest, plain_messages
from maestrale.api.openai.tools import read_tools
from maestrale.errors import InvalidRequest


def routes(backend: Backend) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        service = await backend.service()
        body = await backend.bodies.read(request.scope, request.receive, TokenizeRequest)
        backend.check_model(body.model)
        body.check_fields()
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("Give 'prompt' or 'messages', one of them.", param="prompt")
        if body.messages is not None:
            tools = [tool.definition for tool in read_tools(body.tools or [])]
            tokens = await service.encode_chat(
                plain_messages(body.messages), prefix=bool(body.messages[-1].prefix), tools=tools
            )
        elif body.tools:
            raise InvalidRequest("'tools' are for 'messages', not for a 'prompt'.", param="tools")
        else:
            add_bos = body.add_special_tokens is not False
            tokens = await service.encode_text(body.prompt or "", add_bos=add_bos)
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": service.context_length,
            "tokens": tokens,
            "token_strs": None,
        }
        if body.return_token_strs:
            answer["token_strs"] = [service.spell(token_id)[0] for token_id in tokens]
        return JSONResponse(answer)

    async def detokenize(request: Request) -> Response:
        service = await backend.service()
        body = await backend.bodies.read(request.scope, request.receive, DetokenizeRequest)
        backend.check_model(body.model)
        return JSONResponse({"prompt": await service.decode(body.tokens)})

    async def tokenizer_info(request: Request) -> Response:
        service = await backend.service()
        names = {token: name for name, token in service.vocabulary.control_ids.items()}
        begins = await service.encode_text("")
        ends = service.vocabulary.eos_token_ids
        return JSONResponse(
            {
                "tokenizer_class": type(service.encoder).__name__,
                "bos_token": names.get(begins[0]) if begins else None,
                "eos_token": names.get(ends[0]) if ends else None,
                "pad_token": None,
                "model_max_length": service.context_length,
                "vocab_size": len(service.vocabulary),
                "chat_template": getattr(service.encoder, "chat_template", None),
            }
        )

    return [
        Route("/tokenizer_info", tokenizer_info, methods=["GET"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]
