"""The whole API on the scripted engine, in this process: what the API's tests talk to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from msgspec import structs

from maestrale.api.app import build_app
from maestrale.api.backend import Backend
from maestrale.api.dialect import Dialects
from maestrale.api.dialects import DIALECTS
from maestrale.api.http.protocol import protocol_class
from maestrale.chat.service import ChatService, drawn_from
from maestrale.config.settings import Settings
from maestrale.engines.base import Constraint, EngineConfig, TaskChoice
from maestrale.engines.constraint import compile_constraint, grammar_text
from maestrale.engines.scripted import ScriptedEngine
from maestrale.errors import InvalidRequest, Location
from maestrale.models.fim_tokens import FimMarks
from maestrale.models.vocabulary import BYTE_EOS, byte_vocabulary
from maestrale.prompt.fill_in_the_middle import around_gap
from maestrale.prompt.jinja import TemplateReads
from maestrale.prompt.messages import ChatMessage, EncodedPrompt, Tool, refuse_if_hopeless
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.tags import KNOWN, TagFormat
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.layout import HERMES
from maestrale.prompt.tools.layout_format import LayoutFormat

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
KV_CACHE_BYTES = 64 << 20  # 65,536 tokens of the scripted engine


class ByteEncoder:
    """Prompts for the scripted engine's vocabulary: one token a byte, messages on lines."""

    def __init__(
        self, tool_format: ToolFormat | None = None, reasoning: ReasoningFormat | None = None
    ) -> None:
        self.tool_format = tool_format
        self.reasoning = reasoning
        self.reads = TemplateReads()
        self.native_tools = tool_format is not None
        self.fim_marks: FimMarks | None = None

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final: bool = False,
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        refuse_if_hopeless((message.text for message in messages), 1, max_tokens)
        for index, message in enumerate(messages):
            if self.tool_format is None and (message.tool_calls or message.role == "tool"):
                field = "tool_calls" if message.tool_calls else "role"
                raise InvalidRequest("No tools here.", at=Location("messages", index, field))
        text = "".join(f"{tool['function']['name']}?\n" for tool in tools or ())
        for message in messages:
            calls = [f"{call.id}={call.name}{call.arguments}" for call in message.tool_calls]
            told = " ".join([message.tool_call_id or "", *calls]).strip()
            thought = f"[{message.reasoning}] " if self.reasoning and message.reasoning else ""
            text += f"{message.role}{told and f'({told})'}: {thought}{message.text}\n"
        return EncodedPrompt(tuple(text.encode()), text)

    def encode_text(
        self, text: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        refuse_if_hopeless([text], 1, max_tokens)
        return tuple(text.encode())

    def encode_fim(
        self, prefix: str, suffix: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        assert self.fim_marks is not None
        refuse_if_hopeless([prefix, suffix], 1, max_tokens)
        return around_gap(self.fim_marks, begin=(), prefix=prefix.encode(), suffix=suffix.encode())

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        max_document_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> tuple[int, ...]:
        document = document[:max_document_tokens]
        refuse_if_hopeless([query, document], 1, max_tokens)
        return (*query.encode(), *b"?", *document.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token != BYTE_EOS).decode(errors="replace")


class DirectVetter:
    """Compiles in this process; the tests of supervise/ have the one that does not."""

    async def vet(self, constraint: Constraint, key: str = "-") -> Constraint:
        compile_constraint(constraint, byte_vocabulary())
        return structs.replace(constraint, written=grammar_text(constraint))


@dataclasses.dataclass
class Api:
    """A client of the API, and the engine behind it."""

    client: httpx.AsyncClient
    engine: ScriptedEngine
    app: Any
    encoder: ByteEncoder
    backend: Backend

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=chat_body(**fields))

    async def events(self, path: str = CHAT, **fields: Any) -> list[Any]:
        """The decoded events of a stream, `"[DONE]"` as it is; comments left out."""
        body = chat_body(**fields) if path == CHAT else fields
        async with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            text = (await answer.aread()).decode()
        assert text.endswith("\n\n")
        blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") for block in blocks)
        assert all(len(block.splitlines()) == 1 for block in blocks)  # for Python's lines, too
        data = [block.removeprefix("data: ") for block in blocks]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    async def idle(self) -> None:
        """Wait until the engine has nothing to do. Fails after two seconds."""
        async with asyncio.timeout(2):
            while self.engine.stats().running or self.engine.stats().waiting:
                await asyncio.sleep(0.005)


def chat_body(**fields: Any) -> dict[str, Any]:
    """A good request; `fields` are added, or replace what is there."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}


@contextlib.asynccontextmanager
async def api(
    settings: Settings | None = None,
    *,
    options: dict[str, str] | None = None,
    max_model_len: int = 4096,
    max_num_seqs: int = 64,
    over_http: bool = False,
    base_url: str = "http://127.0.0.1:8000",
    tools: bool = False,
    thinks: bool = False,
    fills: bool = False,
    task: TaskChoice = "generate",
    dialects: Dialects = DIALECTS,
) -> AsyncIterator[Api]:
    """The app on a started engine; `over_http` puts it behind a real uvicorn on a free port.

    With `tools` the model knows Hermes' format of tool calls; with `thinks` it thinks in tags,
    and with `fills` it has marks for filling in the middle: the bytes 1 to 3.
    `task` embed: it is served for embeddings; rerank: for rankings.
    """
    settings = settings or make_settings()
    engine = ScriptedEngine(
        EngineConfig(
            engine="scripted",
            model_dir="",
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            kv_cache_bytes=KV_CACHE_BYTES,
            options=options or {},
            task=task,
        )
    )
    await engine.start()
    vocabulary = byte_vocabulary()
    encoder = ByteEncoder(
        LayoutFormat(HERMES, vocabulary) if tools else None,
        TagFormat(KNOWN[1], vocabulary) if thinks else None,
    )
    if fills:
        encoder.fim_marks = FimMarks(prefix=1, suffix=2, middle=3, ends=(1, 2, 3, 4))
    backend = Backend(settings)
    deployment = backend.deployments.default
    service = ChatService(
        engine,
        encoder,
        vocabulary,
        DirectVetter(),
        seeds=drawn_from(settings.seed),
        on_gap=deployment.observe_gap,
    )
    deployment.open(engine, MODEL, service=service)
    app = build_app(backend, dialects)
    try:
        if over_http:
            async with (
                serve(app, dialects) as url,
                httpx.AsyncClient(base_url=url, timeout=30) as client,
            ):
                yield Api(client, engine, app, encoder, backend)
        else:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                yield Api(client, engine, app, encoder, backend)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def serve(app: Any, dialects: Dialects = DIALECTS) -> AsyncIterator[str]:
    """The app behind uvicorn and our protocol, on a free port."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=protocol_class(dialects=dialects),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@contextlib.contextmanager
def api_in_thread(**options: Any) -> Iterator[str]:
    """`api` with these arguments, over HTTP, beside a test that is not asynchronous: its URL."""
    ready: queue.Queue[str | Exception] = queue.Queue()
    ends: list[Callable[[], object]] = []

    async def run() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(done.set))
        async with api(over_http=True, **options) as server:
            ready.put(str(server.client.base_url).rstrip("/"))
            await done.wait()

    def body() -> None:
        try:
            asyncio.run(run())
        except Exception as error:  # raised in the test, below
            ready.put(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        url = ready.get(timeout=30)
        if isinstance(url, Exception):
            raise url
        yield url
    finally:
        for end in ends:
            end()
        thread.join(30)


def make_settings(**fields: Any) -> Settings:
    return Settings(**{"cache_dir": Path("/nonexistent"), "store": False, **fields})


def check_error(answer: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The one shape of every error, in OpenAI's place and in Mistral's. Returns it."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert body == {"error": error, "object": "error", **error}
    assert error["message"]
    assert error["type"]
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert len(answer.content) < 5000
    if param is not None:
        assert error["param"] == param
    return dict(error)


def check_error_of_path(answer: httpx.Response) -> None:
    """An error in the shape of the API whose path was asked: OpenAI's, or Anthropic's."""
    path = answer.request.url.path
    if path != "/v1/messages" and not path.startswith("/v1/messages/"):
        check_error(answer, answer.status_code)
        return
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"]
    assert set(body["error"]) == {"type", "message"}
    assert all(body["error"].values())
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert len(answer.content) < 5000
