"""The routes of OpenAI's, Mistral's and vLLM's clients: answers, models, tokens."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale.api.answering import answering
from maestrale.api.auth import check_operator, may_ask
from maestrale.api.backend import Backend, Steering
from maestrale.api.context import context_of
from maestrale.api.deployment import Deployment
from maestrale.api.durable.resumable import Endpoint, idempotent
from maestrale.api.openai.fim import read_fim
from maestrale.api.openai.foreign_fields import check_foreign
from maestrale.api.openai.reading import (
    check_turn,
    has_prefix,
    plain_messages,
    read_chat,
    read_completion,
)
from maestrale.api.openai.reasoning import template_kwargs
from maestrale.api.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    FimRequest,
    TokenizeRequest,
)
from maestrale.api.openai.tools import read_tools
from maestrale.chat.options import Conversation
from maestrale.chat.thinking import VARIABLES, check_variables
from maestrale.engines.base import EngineInfo, Task
from maestrale.errors import InvalidRequest, Sent

ROOTS = ("/v1", "")  # some clients' base has no /v1
# An engine's word for what a model is served for: the one of --task.
TASKS: dict[Task, str] = {"generate": "chat", "embed": "embed", "rerank": "rerank"}


def answer_routes(backend: Backend) -> list[Route]:
    """POST /v1/chat/completions, /v1/completions and /v1/fim/completions."""
    chat = answering(backend, ChatRequest, read_chat)
    completion = answering(backend, CompletionRequest, read_completion)
    fim = answering(backend, FimRequest, read_fim)
    endpoints = (
        ("/chat/completions", chat),
        ("/completions", completion),
        ("/fim/completions", fim),
    )
    return [
        Route(root + path, endpoint, methods=["POST"])
        for path, endpoint in endpoints
        for root in ROOTS
    ]


def model_routes(backend: Backend) -> list[Route]:
    """GET /v1/models and /v1/models/{id}: what is served, under each of its names, and how it is.
    POST /v1/models/{id}/load and /unload, for the operator.
    """

    async def list_models(request: Request) -> Response:
        await backend.check_ready()
        owner = context_of(request.scope).owner
        cards = [
            await card(deployment, name)
            for deployment in backend.deployments
            if may_ask(owner, deployment)
            for name in deployment.listed
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def get_model(request: Request) -> Response:
        await backend.check_ready()
        name = request.path_params["model_id"]
        deployment = backend.find(context_of(request.scope), name)
        return JSONResponse(await card(deployment, name))

    def steer(steering: Steering) -> Endpoint:
        async def answer(request: Request) -> Response:
            context = context_of(request.scope)
            check_operator(context.owner)
            name = request.path_params["model_id"]
            deployment = backend.find(context, name)
            await backend.steer(deployment.id, steering)
            shown = await card(deployment, name)
            # It has begun; the card tells when it is done.
            return JSONResponse(shown, status_code=202)

        return idempotent(backend, answer)

    return [
        route
        for root in ROOTS
        for route in (
            Route(f"{root}/models", list_models, methods=["GET"]),
            Route(f"{root}/models/{{model_id:path}}/load", steer("load"), methods=["POST"]),
            Route(f"{root}/models/{{model_id:path}}/unload", steer("unload"), methods=["POST"]),
            Route(f"{root}/models/{{model_id:path}}", get_model, methods=["GET"]),
        )
    ]


async def card(deployment: Deployment, name: str) -> dict[str, Any]:
    """One model as OpenAI's, Mistral's and vLLM's clients read it, with its state."""
    health, engine = await deployment.health(), deployment.engine
    names = deployment.listed
    known = {
        "id": name,
        "object": "model",
        "created": deployment.created,
        "owned_by": "maestrale",
        "root": names[0],
        "parent": None,
        "permission": [],
        "type": "base",
        "name": name,
        "aliases": [other for other in names if other != name],
        # Ours, as /health tells it of the server.
        "state": health.state,
        "detail": health.detail,
    }
    return known if engine is None else {**known, **_abilities(deployment, engine.describe())}


def _abilities(deployment: Deployment, info: EngineInfo) -> dict[str, Any]:
    """What is known of a model once it was prepared."""
    length, form, chats = info.context_length, deployment.tool_call_format, info.task == "generate"
    return {
        "max_model_len": length,
        "max_context_length": length,
        "default_model_temperature": deployment.sampling.temperature,
        "capabilities": {
            "completion_chat": chats,
            "completion_fim": chats and deployment.fills_gaps,
            "function_calling": chats and form is not None,
            "fine_tuning": False,
            "vision": False,
        },
        "task": TASKS[info.task],
        # Ours: how the model writes calls; generic where its prompts know no tools.
        "tool_call_format": form,
    }


def token_routes(backend: Backend) -> list[Route]:
    """POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM's."""

    async def tokenize(request: Request) -> Response:
        await backend.check_ready()
        body = await backend.bodies.read(request.scope, request.receive, TokenizeRequest)
        service = await backend.find(context_of(request.scope), body.model).service()
        check_foreign(body)
        check_turn(body)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("Give 'prompt' or 'messages', one of them.", at=Sent("prompt"))
        if body.messages is not None:
            tools = [tool.definition for tool in read_tools(body.tools or [])]
            conversation = Conversation(
                messages=plain_messages(body.messages), continues=has_prefix(body)
            )
            told = tuple(template_kwargs(body.chat_template_kwargs).items())
            context_of(request.scope).rename({VARIABLES: Sent("chat_template_kwargs")})
            check_variables(told, service.encoder.reads)
            prompt = await service.tokenizer.encode_chat(conversation, tools=tools, variables=told)
            tokens = prompt.token_ids
        elif body.tools:
            raise InvalidRequest(
                "'tools' are for 'messages', not for a 'prompt'.", at=Sent("tools")
            )
        else:
            add_bos = body.add_special_tokens is not False
            tokens = await service.tokenizer.encode_text(body.prompt or "", add_bos=add_bos)
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": service.context_length,
            "tokens": tokens,
            "token_strs": None,
        }
        if body.return_token_strs:
            answer["token_strs"] = [service.tokenizer.spell(token_id)[0] for token_id in tokens]
        return JSONResponse(answer)

    async def detokenize(request: Request) -> Response:
        await backend.check_ready()
        body = await backend.bodies.read(request.scope, request.receive, DetokenizeRequest)
        service = await backend.find(context_of(request.scope), body.model).service()
        return JSONResponse({"prompt": await service.tokenizer.decode(body.tokens)})

    async def tokenizer_info(request: Request) -> Response:
        model = request.query_params.get("model")
        service = await backend.find(context_of(request.scope), model).service()
        names = {token: name for name, token in service.vocabulary.control_ids.items()}
        begins = await service.tokenizer.encode_text("")
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
        Route("/tokenize", idempotent(backend, tokenize), methods=["POST"]),
        Route("/detokenize", idempotent(backend, detokenize), methods=["POST"]),
    ]
