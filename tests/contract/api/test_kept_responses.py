"""Responses that are kept: fetched, gone on from, listed, deleted, and made in the background."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList

from api_app import JSON, Api, api, check_error, make_settings
from durable_api import SPOILT
from maestrale.api.openai.responses import background
from maestrale.keys import add_key
from maestrale.logs import FIELDS, REQUESTS
from responses_api import RESPONSES, WEATHER, answer, ask, body, events_of, prompt_of

pytestmark = pytest.mark.anyio

SLOW = {"text": "Good day to you", "tokens_per_second": "20"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


def keeping(file: Path, **fields: Any) -> Any:
    return make_settings(store=True, store_file=file, **fields)


@pytest.fixture
async def server(file: Path) -> AsyncIterator[Api]:
    async with api(keeping(file), options={"text": "Good day"}, tools=True) as server:
        yield server


@pytest.fixture
async def slow(file: Path) -> AsyncIterator[Api]:
    async with api(keeping(file), options=SLOW, max_num_seqs=1) as server:
        yield server


async def get(server: Api, id: str, path: str = "", **query: Any) -> Any:
    got = await server.client.get(f"{RESPONSES}/{id}{path}", params=query)
    assert got.status_code == 200, got.text
    return got.json()


async def fetched(server: Api, id: str) -> dict[str, Any]:
    found = await get(server, id)
    Response.model_validate(found, strict=True)
    return dict(found)


async def ended(server: Api, id: str) -> dict[str, Any]:
    """A response at its end, which comes within five seconds."""
    async with asyncio.timeout(5):
        while (found := await fetched(server, id))["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
    return found


async def test_a_response_is_fetched_as_it_was_given(server: Api) -> None:
    made = await answer(server, metadata={"a": "b"})
    assert made["store"] is True
    assert await get(server, made["id"]) == made
    streamed = events_of((await ask(server, stream=True)).text)[-1]["response"]
    assert await get(server, streamed["id"]) == streamed


async def test_what_is_not_to_be_kept_is_not(server: Api) -> None:
    made = await answer(server, store=False)
    assert made["store"] is False
    error = check_error(await server.client.get(f"{RESPONSES}/{made['id']}"), 404, "response_id")
    assert error["code"] == "response_not_found"
    error = check_error(await ask(server, previous_response_id=made["id"]), 400)
    assert error["code"] == "previous_response_not_found"


async def test_a_conversation_goes_on(server: Api) -> None:
    first = await answer(server, input="One", instructions="Be kind.")
    second = await answer(server, input="Two", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    told = await prompt_of(server, input="Three", previous_response_id=second["id"])
    assert told == ("user: One\nassistant: Good day\nuser: Two\nassistant: Good day\nuser: Three\n")
    again = await prompt_of(server, input="Other", previous_response_id=first["id"])
    assert again == "user: One\nassistant: Good day\nuser: Other\n"


async def test_calls_go_on_with_what_they_gave(file: Path) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    async with api(keeping(file), options={"text": call}, tools=True) as server:
        made = await answer(server, tools=[WEATHER])
        [called] = made["output"]
        output = {
            "type": "function_call_output",
            "call_id": called["call_id"],
            "output": "Sun",
        }
        told = await prompt_of(server, input=[output], previous_response_id=made["id"])
        assert told == (
            f'user: Hello\nassistant({called["call_id"]}=get_weather{{"city": "Rome"}}): \n'
            f"tool({called['call_id']}): Sun\n"
        )
        reference = {"type": "item_reference", "id": called["id"]}
        told = await prompt_of(server, input=[reference, output])
        assert "assistant(" in told
        missing = {"type": "item_reference", "id": "fc_nope"}
        check_error(await ask(server, input=[missing]), 400, "input[0].id")


async def test_the_items_of_an_input(server: Api) -> None:
    items = [{"role": "user", "content": f"Question {number}"} for number in range(5)]
    first = await answer(server, input=items)
    second = await answer(server, input="Last", previous_response_id=first["id"])
    listed = await get(server, second["id"], "/input_items", order="asc")
    ResponseItemList.model_validate(listed, strict=True)
    texts = [item["content"][0]["text"] for item in listed["data"]]
    assert texts == [*(f"Question {number}" for number in range(5)), "Good day", "Last"]
    assert (listed["first_id"], listed["has_more"]) == (listed["data"][0]["id"], False)
    newest = await get(server, second["id"], "/input_items")
    assert newest["data"] == listed["data"][::-1]
    paged: list[Any] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = await get(server, second["id"], "/input_items", **query)
        paged += page["data"]
        query["after"] = page["last_id"]
        if not page["has_more"]:
            break
    assert paged == newest["data"]
    path = f"{RESPONSES}/{second['id']}/input_items"
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "x"}, {"zork": 1}):
        check_error(await server.client.get(path, params=wrong), 400, next(iter(wrong)))
    one = f"{RESPONSES}/{second['id']}"
    for asked in (path, one):
        for name in ("include", "include[]"):
            known = {name: ["reasoning.encrypted_content", "message.output_text.logprobs"]}
            assert (await server.client.get(asked, params=known)).status_code == 200
            unknown = await server.client.get(asked, params={name: "zork"})
            check_error(unknown, 400, "include[0]")
    refused = await server.client.put(one)
    check_error(refused, 405)
    assert refused.headers["allow"] == "DELETE, GET, HEAD"


async def test_deleting(server: Api) -> None:
    first = await answer(server)
    second = await answer(server, previous_response_id=first["id"])
    gone = await server.client.delete(f"{RESPONSES}/{first['id']}")
    assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
    check_error(await server.client.get(f"{RESPONSES}/{first['id']}"), 404)
    check_error(await server.client.delete(f"{RESPONSES}/{first['id']}"), 404)
    check_error(await ask(server, previous_response_id=second["id"]), 400, "previous_response_id")
    check_error(await server.client.get(f"{RESPONSES}/{second['id']}/input_items"), 404)
    assert (await get(server, second["id"]))["id"] == second["id"]


async def test_keys_see_their_own_only(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, theirs = add_key(keys, "mine"), add_key(keys, "theirs")

    def sent(key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    async with api(keeping(file, key_file=keys)) as server:
        got = await server.client.post(RESPONSES, json=body(), headers=sent(mine))
        path = f"{RESPONSES}/{got.json()['id']}"
        item = (await server.client.get(f"{path}/input_items", headers=sent(mine))).json()
        for method, url in (
            ("GET", path),
            ("DELETE", path),
            ("POST", f"{path}/cancel"),
            ("GET", f"{path}/input_items"),
        ):
            check_error(await server.client.request(method, url, headers=sent(theirs)), 404)
            check_error(await server.client.request(method, url), 401)
        for fields in (
            {"previous_response_id": got.json()["id"]},
            {"input": [{"type": "item_reference", "id": item["data"][0]["id"]}]},
        ):
            wrong = await server.client.post(RESPONSES, json=body(**fields), headers=sent(theirs))
            check_error(wrong, 400)
        assert (await server.client.get(path, headers=sent(mine))).status_code == 200


async def test_the_file_is_private_and_outlives_the_server(file: Path) -> None:
    async with api(keeping(file)) as server:
        made = await answer(server)
        for each in file.parent.iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    async with api(keeping(file)) as server:
        assert await get(server, made["id"]) == made
    async with api(keeping(file)) as one, api(keeping(file)) as other:
        made = await answer(one)
        assert await get(other, made["id"]) == made
        await answer(other, previous_response_id=made["id"])


async def test_a_server_that_keeps_nothing() -> None:
    async with api() as server:
        made = await answer(server, store=True)
        assert made["store"] is False
        check_error(await server.client.get(f"{RESPONSES}/{made['id']}"), 404)
        check_error(await ask(server, background=True), 400, "background")
        check_error(await ask(server, previous_response_id=made["id"]), 400, "previous_response_id")


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_a_file_that_cannot_be_used(file: Path, spoil: Any) -> None:
    """Answers go on; what needs the file says so, and nothing of where it is."""
    file.parent.mkdir()
    spoil(file)
    async with api(keeping(file)) as server:
        made = await answer(server)
        assert made["store"] is False
        [last] = events_of((await ask(server, stream=True)).text)[-1:]
        assert last["response"]["store"] is False
        for got in (
            await ask(server, background=True),
            await ask(server, previous_response_id="resp_1"),
            await server.client.get(f"{RESPONSES}/resp_1"),
        ):
            error = check_error(got, 503)
            assert error["code"] == "store_unavailable"
            assert str(file.parent) not in got.text


async def test_a_broken_file_is_set_aside(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    async with api(keeping(file)) as server:
        made = await answer(server)
        assert made["store"] is True
        await answer(server, previous_response_id=made["id"])
    [aside] = file.parent.glob("*.broken-*")
    assert aside.read_bytes() == b"no database" * 1000


async def test_a_file_that_is_locked_or_full(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maestrale.database.BUSY_SECONDS", 0.1)
    async with api(keeping(file)) as server:
        await answer(server)
        with sqlite3.connect(file) as db:
            db.execute("BEGIN IMMEDIATE")
            assert (await answer(server))["store"] is False
            db.execute("ROLLBACK")
        assert (await answer(server))["store"] is True


# In the background


async def test_a_response_in_the_background(slow: Api) -> None:
    first = await answer(slow, background=True, max_output_tokens=9)
    assert (first["status"], first["output"], first["background"]) == ("queued", [], True)
    second = await answer(slow, background=True, max_output_tokens=4)
    assert (await fetched(slow, second["id"]))["status"] == "queued"
    found = await ended(slow, first["id"])
    assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 9)
    assert Response.model_validate(found).output_text == "Good day "
    assert (await ended(slow, second["id"]))["output"]
    check_error(await ask(slow, previous_response_id="resp_nope"), 400)


async def test_one_that_is_not_at_its_end_is_not_gone_on_from(slow: Api) -> None:
    made = await answer(slow, background=True)
    error = check_error(await ask(slow, previous_response_id=made["id"]), 400)
    assert error["code"] == "previous_response_not_ready"
    await ended(slow, made["id"])
    assert (await ask(slow, previous_response_id=made["id"], max_output_tokens=1)).is_success


async def test_a_background_response_streams_and_its_stream_is_taken_up_again(slow: Api) -> None:
    made = await answer(slow, background=True, max_output_tokens=1)
    check_error(
        await slow.client.get(f"{RESPONSES}/{made['id']}", params={"stream": "true"}), 400, "stream"
    )
    got = await ask(slow, background=True, stream=True)
    found = events_of(got.text)
    kinds = [each["type"].removeprefix("response.") for each in found]
    assert kinds[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    assert found[0]["response"]["status"] == "queued"
    assert kinds[-1] == "completed"
    path = f"{RESPONSES}/{found[0]['response']['id']}"
    assert await get(slow, found[0]["response"]["id"]) == found[-1]["response"]
    for after in (0, 3, len(found) - 2, len(found) - 1):
        query: dict[str, Any] = {"stream": "true", "starting_after": after}
        again = await slow.client.get(path, params=query)
        assert events_of(again.text) == found[after + 1 :]
    for wrong in (f"stream=true&starting_after={len(found)}", "stream=true&starting_after=x",
                  "starting_after=1"):  # fmt: skip
        check_error(await slow.client.get(f"{path}?{wrong}"), 400, "starting_after")
    check_error(await slow.client.get(path, params={"stream": "yes"}), 400, "stream")


async def test_it_goes_on_when_its_client_leaves(file: Path) -> None:
    async with api(keeping(file), options=SLOW, over_http=True) as server:
        sent = {**body(), "background": True, "stream": True}
        async with server.client.stream("POST", RESPONSES, json=sent) as got:
            text = ""
            async for line in got.aiter_lines():
                text += line
                if "output_text.delta" in line:
                    break
        id = json.loads(text.partition("data: ")[2].partition("event:")[0])["response"]["id"]
        assert (await fetched(server, id))["status"] == "in_progress"
        query = {"stream": "true", "starting_after": "2"}
        rest = await server.client.get(f"{RESPONSES}/{id}", params=query)
        found = events_of(rest.text)
        assert found[0]["sequence_number"] == 3
        assert found[-1]["response"]["output"][0]["content"][0]["text"] == SLOW["text"]


async def test_cancelling(slow: Api) -> None:
    made = await answer(slow, background=True, stream=False)
    waiting = await answer(slow, background=True)
    for each in (waiting, made):
        got = await slow.client.post(f"{RESPONSES}/{each['id']}/cancel")
        assert got.json()["status"] == "cancelled"
        Response.model_validate(got.json(), strict=True)
    await slow.idle()
    again = await slow.client.post(f"{RESPONSES}/{made['id']}/cancel", headers=JSON)
    assert again.json() == await fetched(slow, made["id"])
    plain = await answer(slow, max_output_tokens=1)
    check_error(await slow.client.post(f"{RESPONSES}/{plain['id']}/cancel"), 400, "response_id")
    check_error(await slow.client.post(f"{RESPONSES}/resp_nope/cancel"), 404, "response_id")


async def test_a_stream_of_one_that_is_cancelled_ends(file: Path) -> None:
    async def cancel() -> None:
        changed = 0
        while not changed:
            await asyncio.sleep(0.05)
            with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(file) as db:
                changed = db.execute(  # as another process would
                    "UPDATE responses SET cancelled = 1 WHERE status = 'in_progress'"
                ).rowcount

    options = {"text": "Good day to you. " * 50, "tokens_per_second": "20"}
    async with api(keeping(file), options=options) as server:
        got, _ = await asyncio.gather(ask(server, background=True, stream=True), cancel())
        last = events_of(got.text)[-1]
        assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
        await server.idle()


async def test_deleting_one_that_is_made_stops_it(slow: Api) -> None:
    made = await answer(slow, background=True)
    assert (await slow.client.delete(f"{RESPONSES}/{made['id']}")).is_success
    await slow.idle()
    check_error(await slow.client.get(f"{RESPONSES}/{made['id']}"), 404)


async def test_one_that_fails(file: Path) -> None:
    options = {"text": "Good day", "lose_at_token": "4"}
    async with api(keeping(file), options=options) as server:
        made = await answer(server, background=True)
        found = await ended(server, made["id"])
        assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
    async with api(keeping(file), options=options) as server:
        got = events_of((await ask(server, background=True, stream=True)).text)
        assert [each["type"] for each in got[-2:]] == ["error", "response.failed"]


async def test_one_whose_server_is_gone_for_good_has_failed(file: Path) -> None:
    async with api(keeping(file), options=SLOW) as server:
        made = await answer(server, background=True)
        with sqlite3.connect(file) as db:
            [copied] = db.execute("SELECT body FROM responses").fetchall()
        await ended(server, made["id"])
        with sqlite3.connect(file) as db:  # as an earlier version kept it
            db.execute("UPDATE responses SET status = 'in_progress', beat = 0, body = ?", copied)
        found = await fetched(server, made["id"])
        assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
        cancelled = await server.client.post(f"{RESPONSES}/{made['id']}/cancel")
        assert cancelled.json()["status"] == "failed"


async def test_a_token_limit_refuses_before_anything_is_queued(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "k", tokens_per_minute=100)
    headers = {"authorization": f"Bearer {key}"}
    async with api(keeping(file, key_file=keys), options=SLOW) as server:
        sent = {**body(), "background": True, "max_output_tokens": 60}
        first = await server.client.post(RESPONSES, json=sent, headers=headers)
        assert first.json()["status"] == "queued"
        second = await server.client.post(RESPONSES, json=sent, headers=headers)
        check_error(second, 429)


async def test_a_run_tells_of_itself_in_the_log(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", REQUESTS.name)
    async with api(keeping(file), options={"text": "Good day"}) as server:
        await ended(server, (await answer(server, background=True))["id"])
        await asyncio.sleep(background.FLUSH_SECONDS)
        told = [record for record in caplog.records if record.getMessage() == f"POST {RESPONSES}"]
        counts = [vars(record)[FIELDS].get("completion_tokens") for record in told]
        assert 9 in counts
        metrics = (await server.client.get("/metrics")).text
        assert 'http_requests_total{handler="/v1/responses",method="POST",status="2xx"}' in metrics
        assert 'handler="/v1/responses/{response_id}",method="GET"' in metrics
