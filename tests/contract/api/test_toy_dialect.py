"""A dialect of one file (tests/support/toy_dialect.py) has answers, streams, tools and every error
in its own words, beside OpenAI's, which stay as they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import Api, api, check_error, make_settings
from maestrale.api.app import build_app
from maestrale.api.backend import Backend
from maestrale.api.dialect import Dialects
from maestrale.api.openai.dialect import OpenAI
from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.errors import ConstraintError, EngineDied
from maestrale.keys import add_key
from toy_dialect import Toy

pytestmark = pytest.mark.anyio

BOTH = Dialects(OpenAI(), Toy())
SAY = "/toy/say"
HELLO = {"who": "me", "says": "Hello"}
KIT = [{"called": "get_time"}, {"called": "look", "takes": {"properties": {"at": {}}}}]


def toy(**options: Any) -> Any:
    """The API with both dialects."""
    return api(dialects=BOTH, **options)


async def say(server: Api, **fields: Any) -> httpx.Response:
    return await server.client.post(SAY, json={"talk": [HELLO], **fields})


def check_oops(answer: httpx.Response, status: int, kind: str, spot: str | None = None) -> str:
    """An error in the toy's words, and in no others. Returns why."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"oops", "call"}
    assert body["call"] == answer.headers["toy-call"] == answer.headers["x-request-id"]
    assert body["oops"]["kind"] == kind
    assert body["oops"]["spot"] == spot
    why: str = body["oops"]["why"]
    for foreign in ("messages", "max_tokens", "min_tokens", "response_format", "'tools", "'param"):
        assert foreign not in why
    return why


async def stream(server: Api, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream: name and data."""
    answer = await say(server, flow=True, **fields)
    assert answer.status_code == 200, answer.text
    assert "[DONE]" not in answer.text
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def test_an_answer_whole_and_as_a_stream() -> None:
    async with toy(options={"text": "Good morning"}) as server:
        whole = (await say(server, luck=1)).json()
        assert whole["name"].startswith("toy.")
        assert (whole["says"], whole["uses"], whole["ends"]) == ("Good morning", [], "done")
        events = await stream(server, luck=1)
        assert [name for name, _ in events[:1] + events[-1:]] == ["begin", "end"]
        assert {name for name, _ in events[1:-1]} == {"more"}
        assert "".join(data["says"] for _, data in events[1:-1]) == "Good morning"
        assert events[-2][1]["ends"] == "done"
        cut = (await say(server, most=4)).json()
        assert (cut["says"], cut["ends"]) == ("Good", "cut")


async def test_tools() -> None:
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    async with toy(tools=True, options={"text": f"So:{call}"}) as server:
        whole = (await say(server, kit=KIT)).json()
        assert whole["uses"] == [{"called": "get_time", "with": "{}"}]
        assert (whole["says"], whole["ends"]) == ("So:", "use")
        events = await stream(server, kit=KIT)
        assert [use for _, data in events[1:-1] for use in data["uses"]] == whole["uses"]
        must = (await say(server, kit=KIT, must=True, pick="look")).json()
        assert {use["called"] for use in must["uses"]} == {"look"}


async def test_a_constraint_holds() -> None:
    async with toy() as server:
        shape = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                 "additionalProperties": False}  # fmt: skip
        assert set(json.loads((await say(server, shape=shape)).json()["says"])) == {"a"}


@pytest.mark.parametrize(
    ("body", "kind", "spot", "told"),
    [
        (b"{", "invalid_json", None, "JSON"),
        (b"", "invalid_json", None, "empty"),
        (b"[]", "invalid_value", None, "object"),
        (b"{}", "missing_field", "talk", "'talk' is required."),
        (b'{"talk":[{"who":"me","says":"","x":1}]}', "unknown_field", "talk/0/x", "'talk/0/x'"),
        (b'{"talk":[{"who":"me","says":7}]}', "invalid_value", "talk/0/says", "'talk/0/says'"),
        (b'{"talk":[{"who":"us","says":""}]}', "invalid_value", "talk/0/who", "'boss', 'me'"),
        (b'{"talk":[]}', "invalid_value", "talk", "'talk'"),
    ],
)
async def test_bodies_that_are_none(body: bytes, kind: str, spot: str | None, told: str) -> None:
    async with toy() as server:
        headers = {"content-type": "application/json"}
        answer = await server.client.post(SAY, content=body, headers=headers)
        assert told in check_oops(answer, 400, kind, spot)


@pytest.mark.parametrize(
    ("fields", "kind", "spot", "told"),
    [
        ({"most": 3, "least": 5}, "invalid_value", "least", "'least' (5) is more than"),
        ({"least": 1, "shape": {}}, "invalid_value", "least", "be combined with 'shape'"),
        ({"shape": {"type": "no"}}, "invalid_value", "shape", ""),
        ({"shape": []}, "invalid_value", "shape", "must be an object"),
        ({"must": True}, "invalid_value", "pick", "'pick' asks for a tool"),
        ({"kit": KIT, "pick": "nap"}, "invalid_value", "pick", "'pick' names 'nap'"),
        ({"kit": [{"called": "a b"}]}, "invalid_value", "kit/0/called", "letters"),
        ({"kit": [*KIT, KIT[0]]}, "invalid_value", "kit/2/called", "two tools"),
        ({"kit": [{"called": "f", "takes": 3}]}, "invalid_value", "kit/0/takes", "object"),
        (
            {
                "kit": [{"called": "f", "takes": {"properties": {"a": {"type": "no"}}}}],
                "must": True,
            },
            "invalid_value",
            "kit/0/takes",
            "",
        ),
        ({"model": "other"}, "model_not_found", "model", "other"),
        ({"talk": [{"who": "me", "says": "x" * 500}]}, "context_length_exceeded", "talk", ""),
    ],
)
async def test_what_cannot_be_done_is_named_as_the_client_did(
    fields: dict[str, Any], kind: str, spot: str, told: str
) -> None:
    async with toy(tools=True, max_model_len=200) as server:
        status = 404 if kind == "model_not_found" else 400
        assert told in check_oops(await say(server, **fields), status, kind, spot)


async def test_no_room_for_what_is_asked() -> None:
    talk = [{"who": "me", "says": "x" * 14}]  # "user: …\n" is 21 bytes, each a token
    async with toy(max_model_len=21) as server:
        why = check_oops(
            await say(server, talk=talk, most=9), 400, "context_length_exceeded", "talk"
        )
        assert "the 9 that 'most' asks for" in why


async def test_a_model_without_tools_says_so() -> None:
    async with toy() as server:
        answer = await say(server, kit=KIT)
        assert "'kit'" in check_oops(answer, 400, "unsupported_parameter", "kit")


async def test_the_operator_may_leave_the_choice_to_requests() -> None:
    async with toy(settings=make_settings(enable_auto_tool_choice=False), tools=True) as server:
        why = check_oops(await say(server, kit=KIT), 400, "invalid_value", "pick")
        assert "where 'pick' demands a call" in why


async def test_keys_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    bearer = {"authorization": f"Bearer {add_key(path, 'alice', requests_per_minute=1)}"}
    async with toy(settings=make_settings(key_file=path)) as server:
        check_oops(await say(server), 401, "invalid_api_key")
        wrong = {"authorization": "Bearer nobody's"}
        answer = await server.client.post(SAY, json={"talk": [HELLO]}, headers=wrong)
        check_oops(answer, 401, "invalid_api_key")
        answer = await server.client.post(SAY, json={"talk": [HELLO]}, headers=bearer)
        assert answer.status_code == 200
        assert answer.headers["toy-left-requests"] == "0"
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
        answer = await server.client.post(SAY, json={"talk": [HELLO]}, headers=bearer)
        check_oops(answer, 429, "requests_per_minute_exceeded")
        assert int(answer.headers["retry-after"]) >= 1


async def test_what_is_there_and_how_it_is_asked() -> None:
    async with toy() as server:
        assert (await server.client.get("/toy/hello")).json()["here"]
        check_oops(await server.client.get("/toy/nothing"), 404, "not_found")
        check_oops(await server.client.get("/toy"), 404, "not_found")
        answer = await server.client.get(SAY)
        check_oops(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        answer = await server.client.post(SAY, content=b"{}", headers={"content-type": "text/csv"})
        check_oops(answer, 415, "unsupported_media_type")
        # A path that only begins alike is none of the toy's.
        check_error(await server.client.get("/toys"), 404)


async def test_too_large_a_body() -> None:
    async with toy(settings=make_settings(max_body_bytes=2000)) as server:
        answer = await say(server, talk=[{"who": "me", "says": "x" * 3000}])
        check_oops(answer, 413, "payload_too_large")


async def test_pages_of_other_origins() -> None:
    settings = make_settings(allowed_origins=("https://a.example",))
    async with toy(settings=settings) as server:
        for origin, status in (("https://a.example", 200), ("https://b.example", 403)):
            headers = {"origin": origin}
            answer = await server.client.post(SAY, json={"talk": [HELLO]}, headers=headers)
            assert answer.status_code == status
            if status == 403:
                check_oops(answer, 403, "permission_denied")
            else:
                exposed = answer.headers["access-control-expose-headers"]
                assert "toy-left-requests" in exposed
                assert "x-ratelimit" not in exposed


async def test_a_full_queue() -> None:
    settings = make_settings(max_waiting=0)
    async with toy(
        settings=settings, options={"tokens_per_second": "20"}, max_num_seqs=1
    ) as server:
        first = asyncio.create_task(say(server, most=20))
        while not server.engine.stats().running:
            await asyncio.sleep(0.01)
        answer = await say(server)
        check_oops(answer, 529, "queue_full")
        assert answer.headers["retry-after"]
        assert (await first).status_code == 200


async def test_starting_and_draining() -> None:
    backend = Backend(make_settings())
    transport = httpx.ASGITransport(app=build_app(backend, BOTH))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        check_oops(await client.get("/toy/hello"), 529, "starting")
        backend.drain()
        check_oops(await client.post(SAY, json={}), 529, "draining")


def failing(server: Api, after: int, error: Callable[[], Exception]) -> None:
    """From now on the engine fails after so many tokens of each answer."""
    generate = server.engine.generate

    async def broken(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        count = 0
        async for delta in generate(request):
            if count == after:
                raise error()
            yield delta
            count += 1

    server.engine.generate = broken  # type: ignore[method-assign]


async def test_an_engine_that_dies() -> None:
    async with toy(options={"length": "20"}) as server:
        failing(server, 0, lambda: EngineDied("gone"))
        check_oops(await say(server), 529, "engine_died")
        check_oops(await say(server, flow=True), 529, "engine_died")
    async with toy(options={"length": "20"}) as server:
        failing(server, 3, lambda: EngineDied("gone"))
        events = await stream(server)
        assert [name for name, _ in events].count("oops") == 1
        name, data = events[-1]
        assert (name, data["oops"]["kind"]) == ("oops", "engine_died")


async def test_a_constraint_that_leads_nowhere_in_the_stream() -> None:
    async with toy(options={"length": "20"}) as server:
        failing(server, 2, lambda: ConstraintError("No text is allowed here."))
        name, data = (await stream(server))[-1]
        assert (name, data["oops"]["spot"]) == ("oops", "shape")


async def test_a_fault_of_ours() -> None:
    async with toy() as server:
        failing(server, 0, lambda: ZeroDivisionError("secret"))
        assert "secret" not in check_oops(await say(server), 500, "internal_error")


async def test_broken_http() -> None:
    """What no application sees is refused in the words of the path, as far as it is known."""
    async with toy(over_http=True) as server:
        host, port = server.client.base_url.host, server.client.base_url.port
        for path, words in (("/toy/say", "oops"), ("/v1/models", "error")):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert head.startswith(b"HTTP/1.1 400 ")
            assert words in json.loads(body)


async def test_the_others_words_stay() -> None:
    async with toy() as server:
        check_error(await server.client.get("/v1/nothing"), 404)
        check_error(await server.chat(zork=1), 400, "zork")
        assert (await server.chat()).json()["object"] == "chat.completion"


async def test_the_reference_has_both() -> None:
    async with toy() as server:
        document = (await server.client.get("/openapi.json")).json()
        assert {SAY, "/v1/chat/completions"} <= set(document["paths"])
        assert "Say" in document["components"]["schemas"]
        failure = document["paths"][SAY]["post"]["responses"]["default"]["content"]
        name = failure["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert document["components"]["schemas"][name]["required"] == ["oops"]
        assert SAY in (await server.client.get("/docs")).text


async def test_its_answers_are_counted_as_all_are() -> None:
    async with toy(options={"text": "Hi"}) as server:
        assert (await say(server)).status_code == 200
        await say(server, zork=1)
        metrics = (await server.client.get("/metrics")).text
        assert 'vllm:request_success_total{engine="0",finished_reason="stop"' in metrics
        assert 'maestrale_rejected_requests_total{reason="unknown_field"} 1.0' in metrics
