"""vLLM's, llama.cpp's and Ollama's names of what exists: chat, completions and responses."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api_app import Api, api, check_error
from maestrale.api.openai.other_names import MEANINGS
from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.api.openai.schemas import OTHER_NAMES, ChatRequest, OllamaOptions, OtherNames

pytestmark = pytest.mark.anyio

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x"]}},
    "required": ["a"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Hello"}]


async def ask(server: Api, path: str, **fields: Any) -> httpx.Response:
    own: dict[str, Any] = {
        PATHS[0]: {"messages": HELLO, "max_tokens": 60},
        PATHS[1]: {"prompt": "x", "max_tokens": 60},
        PATHS[2]: {"input": "Hello", "max_output_tokens": 60},
    }[path]
    unbounded = {"n_predict", "num_predict", "options"} & fields.keys()
    if unbounded:
        own = {name: value for name, value in own.items() if not name.startswith("max_")}
    return await server.client.post(path, json={**own, **fields})


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if "output" in body:
        return str(body["output"][0]["content"][0]["text"])
    choice = body["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


LARK = 'start: "yes" | "no" /[!]{3}/\n'
GBNF = 'root ::= "yes" | no [!]{3}\nno ::= "no"\n'
CONSTRAINTS: list[tuple[dict[str, Any], set[str]]] = [
    ({"structured_outputs": {"json": SCHEMA}}, {'{"a":"x"}'}),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {'{"a":"x"}'}),
    ({"structured_outputs": {"regex": "ab{2}c"}}, {"abbc"}),
    ({"structured_outputs": {"choice": ["left (1)", "right/[2]"]}}, {"left (1)", "right/[2]"}),
    ({"structured_outputs": {"grammar": LARK}}, {"yes", "no!!!"}),
    ({"guided_json": SCHEMA}, {'{"a":"x"}'}),
    ({"guided_json": json.dumps(SCHEMA)}, {'{"a":"x"}'}),
    ({"guided_regex": "ab{2}c"}, {"abbc"}),
    ({"guided_choice": ["a.b", "c\nd"]}, {"a.b", "c\nd"}),
    ({"guided_grammar": GBNF}, {"yes", "no!!!"}),
    ({"grammar": GBNF}, {"yes", "no!!!"}),
    ({"json_schema": SCHEMA}, {'{"a":"x"}'}),
    ({"format": SCHEMA}, {'{"a":"x"}'}),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("fields", "texts"), CONSTRAINTS, ids=lambda each: "-".join(each)[:30])
async def test_each_constraint_binds(path: str, fields: dict[str, Any], texts: set[str]) -> None:
    async with api() as server:
        text = text_of(await ask(server, path, **fields))
        if next(iter(texts)).startswith("{"):
            assert json.loads(text) == {"a": "x"}
        else:
            assert text in texts


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fields", [{"format": "json"}, {"structured_outputs": {"json_object": 1}}])
async def test_any_object(path: str, fields: dict[str, Any]) -> None:
    async with api() as server:
        if "structured_outputs" in fields:
            fields = {"structured_outputs": {"json_object": True}}
        answer = await ask(server, path, seed=3, **fields)
        assert text_of(answer).startswith("{")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": {"type": "wizard"}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_choice": ["x"] * 1025}, "guided_choice"),
        ({"guided_choice": ["x" * 70000]}, "guided_choice"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"grammar": "start: <[5]>"}, "grammar"),
        ({"grammar": 'start: "a"\n%json {"type": "string"}'}, "grammar"),
        ({"grammar": '%llguidance {}\nstart: "a"'}, "grammar"),
        ({"json_schema": 5}, "json_schema"),
        ({"format": "yaml"}, "format"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"disable_any_whitespace": True}},
         "structured_outputs.disable_any_whitespace"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ],
)  # fmt: skip
async def test_a_bad_constraint_is_refused_where_it_is(
    path: str, fields: dict[str, Any], param: str
) -> None:
    async with api() as server:
        check_error(await ask(server, path, **fields), 400, param)


async def test_two_ways_at_once_are_named() -> None:
    async with api() as server:
        form = {"type": "json_object"}
        answer = await ask(server, PATHS[0], response_format=form, guided_regex="a")
        assert "'response_format' and 'guided_regex'" in check_error(answer, 400)["message"]
        answer = await ask(server, PATHS[2], text={"format": form}, grammar=LARK)
        assert "'text.format' and 'grammar'" in check_error(answer, 400)["message"]
        last = [*HELLO, {"role": "assistant", "content": "x", "prefix": True}]
        answer = await ask(server, PATHS[0], messages=last, guided_regex="a")
        assert "'guided_regex'" in check_error(answer, 400)["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fields", [{"n_predict": 5}, {"num_predict": 5}, {"options": {"num_predict": 5}}]
)
async def test_the_length_by_other_names(path: str, fields: dict[str, Any]) -> None:
    async with api(options={"length": "50"}) as server:
        assert len(text_of(await ask(server, path, **fields))) == 5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [-1, -2])
async def test_an_open_length(path: str, value: int) -> None:
    async with api(options={"length": "50"}) as server:
        assert len(text_of(await ask(server, path, num_predict=value))) == 50


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [True, False])
async def test_an_answer_without_tokens(path: str, options: bool) -> None:
    fields: dict[str, Any] = {"options": {"num_predict": 0}} if options else {"n_predict": 0}
    async with api() as server:
        answer = await ask(server, path, **fields)
        if path == "/v1/completions":
            assert text_of(answer) == ""
        else:
            check_error(answer, 400, "options.num_predict" if options else "n_predict")


@pytest.mark.parametrize("path", PATHS)
async def test_options_are_read_as_if_they_stood_beside(path: str) -> None:
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7,
               "repeat_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2,
               "num_predict": 20, "stop": ["zzz"], "num_ctx": 4096, "num_gpu": 99,
               "repeat_last_n": -1, "mirostat": 0, "typical_p": 1.0}  # fmt: skip
    async with api() as server:
        beside = {name: options[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed",
                  "presence_penalty", "frequency_penalty", "stop", "num_predict")}  # fmt: skip
        beside["repetition_penalty"] = 1.2
        inside = await ask(server, path, options=options)
        assert text_of(inside) == text_of(await ask(server, path, **beside))
        assert inside.headers["x-seed"] == "7"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": {"temprature": 1}}, "options.temprature"),
        ({"options": {"temperature": 9}}, "options.temperature"),
        ({"options": {"top_p": 0}}, "options.top_p"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"penalize_newline": False}}, "options.penalize_newline"),
        ({"options": {"num_ctx": 4097}}, "options.num_ctx"),
        ({"options": {"seed": 2**65}}, "options.seed"),
        ({"options": []}, "options"),
        ({"format": "xml"}, "format"),
        ({"num_ctx": 100_000}, "num_ctx"),
        ({"n_predict": -3}, "n_predict"),
        ({"n_predict": 5, "num_predict": 6}, "num_predict"),
        ({"temperature": 0.1, "options": {"temperature": 0.2}}, "options.temperature"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"repeat_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n"),
        ({"presence_penalty": 1, "options": {"repeat_last_n": 0}}, "options.repeat_last_n"),
        ({"mirostat": 1}, "mirostat"),
        ({"samplers": ["top_k"]}, "samplers"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"priority": 3}, "priority"),
    ],
)
async def test_what_can_not_be_is_refused_where_it_is(
    path: str, fields: dict[str, Any], param: str
) -> None:
    async with api() as server:
        check_error(await ask(server, path, **fields), 400, param)


@pytest.mark.parametrize("path", PATHS)
async def test_what_changes_nothing_is_accepted(path: str) -> None:
    fields: dict[str, Any] = {
        "repeat_penalty": 1.0, "repeat_last_n": 64, "cache_prompt": True, "id_slot": -1,
        "keep_alive": "5m", "num_ctx": 2048, "mirostat": 0, "mirostat_tau": 5.0, "typical_p": 1,
        "xtc_probability": 0.0, "dry_multiplier": 0, "priority": 0, "skip_special_tokens": True,
        "litellm_metadata": {"a": 1}, "chat_id": "c", "usage": {"include": True}, "tags": ["t"],
        "files": [], "tool_ids": None, "options": {},
    }  # fmt: skip
    async with api(options={"length": "5"}) as server:
        plain = text_of(await ask(server, path, seed=1))
        fields.pop("options")
        assert text_of(await ask(server, path, seed=1, **fields)) == plain


@pytest.mark.parametrize("path", PATHS)
async def test_the_stop_string_may_be_part_of_the_answer(path: str) -> None:
    async with api(options={"text": "one two three"}) as server:
        fields = {"stop": [" two"], "include_stop_str_in_output": True}
        assert text_of(await ask(server, path, **fields)) == "one two"
        fields["include_stop_str_in_output"] = False
        assert text_of(await ask(server, path, **fields)) == "one"


async def test_it_is_so_in_streams_and_by_token() -> None:
    async with api(options={"text": "one two three"}) as server:
        fields: dict[str, Any] = {
            "stop": [" two"],
            "include_stop_str_in_output": True,
            "logprobs": True,
        }
        events = await server.events(**fields)
        deltas = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
        assert "".join(deltas) == "one two"
        answer = await server.chat(stop=["</s>"], include_stop_str_in_output=True)
        assert text_of(answer) == "one two three</s>"


async def test_the_last_message_may_be_continued() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    async with api(options={"text": ", hi"}) as server:
        assert text_of(await server.chat(messages=messages, **fields)) == "Well, hi"
        assert text_of(await server.chat(messages=messages, continue_final_message=True)) == (
            "Well, hi"
        )
        for wrong, param in (
            ({"messages": HELLO, **fields}, "continue_final_message"),
            ({"messages": messages, **fields, "add_generation_prompt": True},
             "continue_final_message"),
            ({"messages": messages, "add_generation_prompt": False}, "add_generation_prompt"),
            ({"messages": messages, **fields, "guided_regex": "a"}, "continue_final_message"),
        ):  # fmt: skip
            check_error(await server.chat(**wrong), 400, param)
        body = {"messages": messages, **fields}
        assert (await server.client.post("/tokenize", json=body)).status_code == 200
        check_error(
            await server.client.post("/tokenize", json={"messages": HELLO, **fields}),
            *(400, "continue_final_message"),
        )


async def test_token_ids_are_told_as_vllm_does() -> None:
    async with api(options={"text": "a🎉b"}) as server:
        answered = [*"a🎉b".encode(), 256]
        body = (await server.chat(return_token_ids=True)).json()
        assert body["choices"][0]["token_ids"] == answered
        assert bytes(body["prompt_token_ids"]) == b"user: Hello\n"
        events = await server.events(return_token_ids=True)
        told = [event["choices"][0]["token_ids"] for event in events[:-1]]
        assert [token for ids in told for token in ids] == answered
        assert bytes(events[0]["prompt_token_ids"]) == b"user: Hello\n"
        assert not any("prompt_token_ids" in event for event in events[1:-1])
        events = await server.events("/v1/completions", prompt="x", return_token_ids=True, n=2)
        for index in (0, 1):
            own = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == index]
            assert own[0]["prompt_token_ids"] == [*b"x"]
            assert [token for choice in own for token in choice["token_ids"]] == answered
        assert "token_ids" not in (await server.chat()).json()["choices"][0]


@pytest.mark.parametrize(
    ("think", "thought"), [(True, True), ("high", True), (False, False), ("none", False)]
)
async def test_think_turns_thoughts_on_and_off(think: Any, thought: bool) -> None:
    async with api(options={"text": "<think>hm</think>yes"}, thinks=True) as server:
        answer = await server.chat(think=think, max_tokens=40)
        message = answer.json()["choices"][0]["message"]
        assert bool(message.get("reasoning_content")) == thought
        contrary = "none" if thought else "high"
        check_error(await server.chat(think=think, reasoning_effort=contrary), 400)
    async with api() as server:
        body = {"prompt": "x", "think": think}
        answer = await server.client.post("/v1/completions", json=body)
        assert (answer.status_code == 400) == (think is not False)


def test_each_name_has_its_meaning_in_the_reference() -> None:
    own = {name for name in OtherNames.__struct_fields__ if name in OtherNames.__annotations__}
    assert own <= MEANINGS.keys()
    assert MEANINGS.keys() <= {*ChatRequest.__struct_fields__}
    assert OTHER_NAMES.keys() <= MEANINGS.keys()
    assert own <= {*ResponsesRequest.__struct_fields__}
    assert {"num_ctx", "num_predict", "seed"} <= {*OllamaOptions.__struct_fields__}
