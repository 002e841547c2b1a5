"""POST /v1/embeddings on the scripted engine, and the clients' own packages on it."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from mistralai.client import Mistral

from api_app import CHAT, JSON, MODEL, Api, api, api_in_thread, check_error, make_settings
from hostile_bodies import BAD_JSON, BAD_MODELS, MESSAGES, REFUSED_MEDIA_TYPES
from maestrale.keys import add_key
from otlp import collector

pytestmark = pytest.mark.anyio

EMBED = "/v1/embeddings"
SIZE = 48


async def post(server: Api, **fields: Any) -> httpx.Response:
    return await server.client.post(EMBED, json={"model": MODEL, "input": "Hello", **fields})


async def vectors(server: Api, **fields: Any) -> list[list[float]]:
    answer = await post(server, **fields)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return [each["embedding"] for each in data]


async def test_a_text_becomes_a_unit_vector() -> None:
    async with api(task="embed") as server:
        answer = await post(server)
        body = answer.json()
        assert body["object"] == "list"
        assert body["model"] == MODEL
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
        (entry,) = body["data"]
        assert (entry["object"], entry["index"], len(entry["embedding"])) == ("embedding", 0, SIZE)
        assert math.hypot(*entry["embedding"]) == pytest.approx(1)
        assert "x-seed" not in answer.headers


async def test_every_kind_of_input_gives_what_it_gives_alone() -> None:
    async with api(task="embed") as server:
        texts = ["Hello", "world", "Hello"]
        alone = [(await vectors(server, input=text))[0] for text in texts]
        ids = [list(text.encode()) for text in texts]
        assert await vectors(server, input=texts) == alone
        assert await vectors(server, input=ids) == alone
        assert await vectors(server, input=ids[1]) == [alone[1]]
        assert alone[0] == alone[2] != alone[1]


async def test_more_inputs_than_the_engine_and_the_queue_take_at_once() -> None:
    settings = make_settings(max_waiting=0)
    async with api(settings, task="embed", max_num_seqs=4) as server:
        many = [f"text {number}" for number in range(100)]
        found = await vectors(server, input=many)
        assert found[70] == (await vectors(server, input="text 70"))[0]
        await server.idle()


async def test_dimensions_cut_and_make_a_unit_vector_anew() -> None:
    async with api(task="embed") as server:
        (whole,) = await vectors(server)
        (cut,) = await vectors(server, dimensions=7)
        length = math.hypot(*whole[:7])
        assert cut == pytest.approx([value / length for value in whole[:7]], rel=1e-6)
        assert await vectors(server, output_dimension=7) == [cut]
        assert await vectors(server, dimensions=SIZE) == [whole]
        for name in ("dimensions", "output_dimension"):
            error = check_error(await post(server, **{name: SIZE + 1}), 400, name)
            assert f"'{name}' is {SIZE + 1}" in error["message"]
        check_error(await post(server, dimensions=7, output_dimension=8), 400, "output_dimension")


async def test_base64_holds_the_same_numbers() -> None:
    async with api(task="embed") as server:
        (plain,) = await vectors(server, encoding_format="float")
        (coded,) = await vectors(server, encoding_format="base64")
        assert list(struct.unpack(f"<{SIZE}f", base64.b64decode(coded))) == plain  # type: ignore[arg-type]


async def test_fields_that_change_nothing_are_taken() -> None:
    async with api(task="embed") as server:
        (plain,) = await vectors(server)
        extra: dict[str, Any] = {"user": "me", "metadata": {"a": 1}, "output_dtype": "float"}
        extra |= {"normalize": True, "truncate_prompt_tokens": None, "options": {}, "priority": 0}
        assert await vectors(server, **extra, add_special_tokens=False) == [plain]


BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "no text": ({"input": ""}, "input"),
    "no texts": ({"input": []}, "input"),
    "an empty one": ({"input": ["a", ""]}, "input[1]"),
    "no ids": ({"input": [[1], []]}, "input[1]"),
    "a mix": ({"input": ["a", 1]}, "input"),
    "a mix of lists": ({"input": [1, [1]]}, "input"),
    "null": ({"input": None}, "input"),
    "a number": ({"input": 5}, "input"),
    "a float": ({"input": [0.5]}, None),
    "an id outside": ({"input": [1, 100_000]}, "input"),
    "an id outside in a list": ({"input": [[1], [100_000]]}, "input[1]"),
    "a negative id": ({"input": [-1]}, None),
    "too many": ({"input": ["a"] * 2049}, "input"),
    "too long": ({"input": "a" * 5000}, "input"),
    "one too long": ({"input": ["a", "a" * 5000]}, "input[1]"),
    "far too long": ({"input": "a" * 1_000_000}, "input"),
    "too many ids": ({"input": [[7], [7] * 5000]}, "input[1]"),
    "zero dimensions": ({"dimensions": 0}, "dimensions"),
    "endless dimensions": ({"dimensions": 2**40}, "dimensions"),
    "dimensions in words": ({"dimensions": "7"}, "dimensions"),
    "an unknown format": ({"encoding_format": "hex"}, "encoding_format"),
    "bits": ({"output_dtype": "binary"}, "output_dtype"),
    "a stream": ({"stream": True}, "stream"),
    "a long label": ({"metadata": "a" * 70_000}, "metadata"),
    "Cohere's kind": ({"input_type": "query"}, "input_type"),
    "Ollama's cut": ({"truncate": True}, "truncate"),
    "llama.cpp's length": ({"embd_normalize": -1}, "embd_normalize"),
    "vLLM's cut": ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    "an unknown field": ({"inputs": "a"}, "inputs"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_refused_by_name(name: str) -> None:
    fields, param = BAD[name]
    async with api(task="embed") as server:
        error = check_error(await post(server, **fields), 400, param)
        if "too long" in name or name == "too many ids":
            assert error["code"] == "context_length_exceeded"
        assert await vectors(server)


@pytest.mark.parametrize("name", BAD_JSON)
async def test_bad_json(name: str) -> None:
    body = BAD_JSON[name].replace(MESSAGES.encode(), b'"input":"Hello"')
    for field in (b'"temperature"', b'"seed"', b'"n"'):
        body = body.replace(field, b'"dimensions"')
    async with api(make_settings(max_body_bytes=32 << 20), task="embed") as server:
        check_error(await server.client.post(EMBED, content=body, headers=JSON), 400)
        assert await vectors(server)


async def test_other_models_methods_types_and_sizes_are_refused() -> None:
    async with api(make_settings(max_body_bytes=2000), task="embed") as server:
        for model in BAD_MODELS:
            error = check_error(await post(server, model=model), 404, "model")
            assert error["code"] == "model_not_found"
        for headers in REFUSED_MEDIA_TYPES:
            check_error(await server.client.post(EMBED, content=b"{}", headers=headers), 415)
        check_error(await server.client.get(EMBED), 405)
        check_error(await post(server, input="a" * 2000), 413)
        assert await vectors(server)


async def test_a_full_queue_refuses_embeddings_and_the_admitted_end() -> None:
    settings = make_settings(max_waiting=2)
    async with api(settings, task="embed", max_num_seqs=2) as server:
        many = {"input": ["a" * 500] * 40}
        answers = await asyncio.gather(*(post(server, **many) for _ in range(20)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 20
        for answer in refused:
            assert check_error(answer, 503)["code"] == "queue_full"
            assert answer.headers["retry-after"]
        assert await vectors(server)
        await server.idle()


async def test_who_leaves_is_computed_for_no_longer() -> None:
    options = {"tokens_per_second": "20"}
    async with api(task="embed", options=options, over_http=True, max_num_seqs=2) as server:
        many = {"model": MODEL, "input": ["a"] * 2048}
        async with httpx.AsyncClient(base_url=server.client.base_url) as client:
            task = asyncio.create_task(client.post(EMBED, json=many))
            async with asyncio.timeout(5):
                while not server.engine.stats().prompt_tokens:
                    await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            while (await server.client.get("/load")).json()["server_load"]:
                await asyncio.sleep(0.02)
        assert server.engine.stats().prompt_tokens < 500
        assert await vectors(server)


async def test_exactly_the_context_is_embedded() -> None:
    async with api(task="embed", max_model_len=64) as server:
        assert await vectors(server, input="a" * 64)
        check_error(await post(server, input="a" * 65), 400, "input")


async def test_an_embedding_model_refuses_chat_by_name() -> None:
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
    }
    async with api(task="embed") as server:
        for path, body in bodies.items():
            answer = await server.client.post(path, json={"model": MODEL, **body})
            assert answer.status_code == 400, path
            assert "/v1/embeddings" in answer.json()["error"]["message"]


async def test_a_chat_model_refuses_embeddings_and_says_how_it_would_make_some() -> None:
    async with api() as server:
        error = check_error(await post(server), 400, "model")
        assert "--task embed" in error["message"]
        assert error["code"] == "wrong_task"


async def test_the_card_says_the_task() -> None:
    async with api() as chat, api(task="embed") as embedding:
        for server, task in ((chat, "chat"), (embedding, "embed")):
            card = (await server.client.get(f"/v1/models/{MODEL}")).json()
            assert card["task"] == task
            assert card["capabilities"]["completion_chat"] == (task == "chat")


async def test_metrics_count_embeddings() -> None:
    async with api(task="embed") as server:
        await vectors(server, input=["abc", "de"])
        text = (await server.client.get("/metrics")).text
        label = f'model_name="{MODEL}"'
        counted = [line for line in text.splitlines() if line.startswith("vllm:request_success")]
        assert any(label in line and line.endswith(" 2.0") for line in counted), counted
        assert any(
            line.startswith("vllm:prompt_tokens_total") and line.endswith(" 5.0")
            for line in text.splitlines()
        )


async def test_a_keys_tokens_are_those_of_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", tokens_per_minute=10)
    async with api(make_settings(key_file=path), task="embed") as server:
        check_error(await post(server), 401)
        headers = {"authorization": f"Bearer {secret}"}
        body = {"model": MODEL, "input": ["abc", "de", "fghi"]}
        answer = await server.client.post(EMBED, json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-reserved-tokens"] == "9"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "1"
        check_error(await server.client.post(EMBED, json=body, headers=headers), 429)


async def test_the_status_page_counts_embeddings() -> None:
    async with api(task="embed") as server:
        await vectors(server, input=["abc", "de"])
        status = (await server.client.get("/status.json")).json()
        assert status["totals"]["prompt_tokens"] == 5
        assert status["totals"]["generation_tokens"] == 0
        assert status["events"] == []


async def test_traces_have_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collector() as found:
        settings = make_settings(otlp_traces_endpoint=found.url)
        async with api(settings, task="embed") as server:
            await vectors(server, input=["abc", "de"], dimensions=7)
            span = found.until(lambda span: span["name"] == f"embeddings {MODEL}")
    expected = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": MODEL,
        "gen_ai.embeddings.dimension.count": 7,
        "gen_ai.usage.input_tokens": 5,
        "http.route": EMBED,
    }
    assert expected.items() <= span["attributes"].items()
    assert not span["failed"]


def test_openais_client_reads_floats_and_base64() -> None:
    known: dict[str, Any] = {"api_key": "none", "max_retries": 0}
    with (
        api_in_thread(task="embed") as url,
        openai.OpenAI(base_url=f"{url}/v1", **known) as client,
        # It asks for base64 by default, and its own strict types don't know of that.
        openai.OpenAI(base_url=f"{url}/v1", _strict_response_validation=True, **known) as strict,
    ):
        default = client.embeddings.create(model=MODEL, input=["Hello", "world"])  # base64
        floats = strict.embeddings.create(
            model=MODEL, input=["Hello", "world"], encoding_format="float", dimensions=SIZE
        )
        assert [each.embedding for each in default.data] == [
            pytest.approx(each.embedding) for each in floats.data
        ]
        assert default.usage.prompt_tokens == default.usage.total_tokens == 10
        tokens = client.embeddings.create(model=MODEL, input=list(b"Hello"))
        assert tokens.data[0].embedding == default.data[0].embedding
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, input="")
        assert refused.value.param == "input"


def test_mistrals_client_reads_embeddings() -> None:
    with api_in_thread(task="embed") as url, Mistral(api_key="none", server_url=url) as client:
        answer = client.embeddings.create(model=MODEL, inputs=["Hello", "a"], output_dimension=9)
        assert [len(each.embedding or ()) for each in answer.data] == [9, 9]
        assert answer.usage.prompt_tokens == 6
