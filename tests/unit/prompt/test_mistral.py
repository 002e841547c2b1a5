"""Mistral's prompts: token-exact, forgiving about roles, and closed to control tokens."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor

from maestrale.api.answering import Serving
from maestrale.api.http.body import decode
from maestrale.api.openai.reading import chat_options, read_conversation
from maestrale.api.openai.schemas import ChatRequest
from maestrale.errors import ContextLengthExceeded, InvalidRequest, ModelError
from maestrale.models.mistral_vocabulary import mistral_vocabulary, shipped_file
from maestrale.models.sampling_defaults import NEUTRAL
from maestrale.prompt.decode import IncrementalDecoder
from maestrale.prompt.encode import PromptEncoder, encoder_for_name
from maestrale.prompt.messages import ChatMessage, EncodedPrompt, ToolCall
from maestrale.prompt.mistral import MistralEncoder

GIST = "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def user(content: str) -> ChatMessage:
    return ChatMessage(role="user", content=content)


def assistant(content: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=content)


def system(content: str) -> ChatMessage:
    return ChatMessage(role="system", content=content)


def test_the_gist_s_message_is_29_tokens_with_one_bos(mistral_v1: PromptEncoder) -> None:
    prompt = mistral_v1.encode_chat([user(GIST)])
    assert len(prompt.token_ids) == 29
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids.count(1) == 1
    assert prompt.text == f"<s>[INST] {GIST} [/INST]"


def test_v3_writes_its_markers_as_control_tokens(mistral_v3: PromptEncoder) -> None:
    prompt = mistral_v3.encode_chat([user("Hi")])
    assert prompt.token_ids[:2] == (1, 3)
    assert prompt.token_ids[-1] == 4
    assert mistral_v3.decode(prompt.token_ids) == prompt.text == "<s>[INST]Hi[/INST]"


@pytest.mark.slow
def test_nemo_has_the_tekken_tokenizer() -> None:
    encoder = encoder_for_name("mistralai/Mistral-Nemo-Instruct-2407")
    prompt = encoder.encode_chat([user("Hi \N{ROCKET}")])
    reference = MistralTokenizer.v3(is_tekken=True)
    request = ChatCompletionRequest(messages=[UserMessage(content="Hi \N{ROCKET}")])
    assert list(prompt.token_ids) == reference.encode_chat_completion(request).tokens
    assert prompt.text == "<s>[INST]Hi \N{ROCKET}[/INST]"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([user("1"), user("2")], "<s>[INST] 1\n\n2 [/INST]"),
        ([system("s"), user("1")], "<s>[INST] s\n\n1 [/INST]"),
        ([user("1"), system("s"), user("2")], "<s>[INST] s\n\n1\n\n2 [/INST]"),
        (
            [user("1"), assistant("a"), assistant("b"), user("2")],
            "<s>[INST] 1 [/INST] a\n\nb</s> [INST] 2 [/INST]",
        ),
        (
            [user("1"), assistant("a"), system("s"), user("2")],
            "<s>[INST] s\n\n1 [/INST] a</s> [INST] 2 [/INST]",
        ),
    ],
)
def test_roles_in_any_order_are_normalised(
    mistral_v1: PromptEncoder, messages: list[ChatMessage], text: str
) -> None:
    assert mistral_v1.encode_chat(messages).text == text


def test_a_prefix_is_left_open(mistral_v1: PromptEncoder) -> None:
    prompt = mistral_v1.encode_chat([user("Hi"), assistant("Well,")], continue_final=True)
    assert prompt.text == "<s>[INST] Hi [/INST] Well,"
    assert 2 not in prompt.token_ids


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [assistant("a")],
        [user("1"), assistant("a")],
        [assistant("")],
        [user("1"), ChatMessage(role="tool", content="{}", tool_call_id="123456789")],
    ],
)
def test_what_the_format_has_no_place_for_is_refused(
    mistral_v3: PromptEncoder, messages: list[ChatMessage]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        mistral_v3.encode_chat(messages)
    assert str(refused.value.at) == "messages"
    assert str(refused.value)


def test_only_the_assistant_s_message_can_be_continued(mistral_v1: PromptEncoder) -> None:
    with pytest.raises(InvalidRequest):
        mistral_v1.encode_chat([user("Hi")], continue_final=True)


def test_v1_is_told_of_tools_calls_and_results_in_plain_text(mistral_v1: PromptEncoder) -> None:
    assert not mistral_v1.native_tools
    assert mistral_v1.tool_format is not None
    assert mistral_v1.tool_format.name == "generic"
    call = ToolCall(id="123456789", name="f", arguments='{"a": 1}')
    turns = [
        user("Hi"),
        ChatMessage(role="assistant", content=None, tool_calls=(call,)),
        ChatMessage(role="tool", content="sun", tool_call_id="123456789"),
    ]
    text = mistral_v1.encode_chat(turns, tools=[TOOL]).text
    assert '{"name": "f", "description": "d", "parameters": {}}' in text
    assert '[/INST] <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call></s>' in text
    assert text.endswith("[INST] Result of f:\nsun [/INST]")
    assert "You may call" not in mistral_v1.encode_chat(turns).text


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7", "v3-tekken"])
def test_an_empty_answer_is_left_out(version: str, content: str | None) -> None:
    encoder = MistralEncoder(shipped_file(version), mistral_vocabulary(version, 0))
    empty = ChatMessage(role="assistant", content=content)
    without = encoder.encode_chat([user("1"), user("2")])
    assert encoder.encode_chat([user("1"), empty, user("2")]) == without
    assert encoder.encode_chat([user("1"), user("2"), empty]) == without
    assert encoder.encode_chat([user("1"), user("2"), empty], continue_final=True) == without
    kept = [user("1"), empty, assistant("a"), user("2")]
    assert "a" in encoder.encode_chat(kept).text


def test_v3_writes_tools_calls_and_results(mistral_v3: PromptEncoder) -> None:
    call = ToolCall(id="abcdefghi", name="f", arguments='{"a": 1}')
    prompt = mistral_v3.encode_chat(
        [
            user("Hi"),
            ChatMessage(role="assistant", tool_calls=(call,)),
            ChatMessage(role="tool", content='{"b": 2}', tool_call_id="abcdefghi"),
        ],
        tools=[TOOL],
    )
    assert "[AVAILABLE_TOOLS]" in prompt.text
    assert "[TOOL_CALLS]" in prompt.text
    assert prompt.text.endswith("[/TOOL_RESULTS]")


@pytest.mark.parametrize("tool", [{}, {"type": "function"}, {"function": {"name": 3}}])
def test_malformed_tools_are_refused(mistral_v3: PromptEncoder, tool: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        mistral_v3.encode_chat([user("Hi")], tools=[tool])
    assert str(refused.value.at) == "tools"


HOSTILE = ["[INST]", "[/INST]", "<s>", "</s>", "<unk>", "[TOOL_CALLS]", "<0x0A>", "\N{ROCKET}"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), min_size=1, max_size=6))
def test_no_control_id_comes_from_a_client(
    mistral_v1: PromptEncoder, mistral_v3: PromptEncoder, parts: list[str]
) -> None:
    text = "x" + "".join(parts)
    for encoder, size in ((mistral_v1, 3), (mistral_v3, 771)):
        plain = [i for i in encoder.encode_chat([user("x")]).token_ids if i < size]
        hostile = encoder.encode_chat([user(text), assistant(text), user(text)]).token_ids
        markers = [i for i in hostile if i < size and i not in range(3 if size == 3 else 771, 1027)]
        expected = [*plain, 2, *plain[1:]]
        assert markers == expected


def test_plain_text_begins_with_one_bos(mistral_v1: PromptEncoder) -> None:
    ids = mistral_v1.encode_text("</s> Hi")
    assert ids[0] == 1
    assert 2 not in ids
    assert mistral_v1.encode_text("</s> Hi", add_bos=False) == ids[1:]
    assert mistral_v1.decode(ids) == "<s></s> Hi"


def test_a_word_of_ten_megabytes_is_refused_before_it_is_tokenized(
    mistral_v1: PromptEncoder,
) -> None:
    with pytest.raises(ContextLengthExceeded, match="32768 tokens"):
        mistral_v1.encode_chat([user("a" * 10_000_000)], max_tokens=32768)


def test_half_a_surrogate_pair_is_the_client_s_error(mistral_v1: PromptEncoder) -> None:
    with pytest.raises(InvalidRequest):
        mistral_v1.encode_chat([user("\ud800")])


def test_names_outside_the_catalogue_are_refused() -> None:
    with pytest.raises(ModelError, match="Mistral-7B-Instruct"):
        encoder_for_name("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_decoding_is_sentencepiece_s_own(version: str, text: str) -> None:
    model = SentencePieceProcessor(model_file=str(shipped_file(version)))
    ids = model.encode(text)
    decoder = IncrementalDecoder(VOCABULARIES[version])
    assert "".join(decoder.push([token]) for token in ids) == model.decode(ids)


VOCABULARIES = {version: mistral_vocabulary(version, 0) for version in ("v1", "v2", "v3", "v7")}


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city, in °C.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Orléans", "days": 2}'},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Orléans?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky":"clear","t":[21,23]}', "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Clear, 21 to 23 °C."},
    {"role": "user", "content": "And the day after?"},
]


@pytest.mark.parametrize("version", ["v2", "v3", "v7", "v3-tekken"])
@pytest.mark.parametrize("turns", [2, 4, 6])
def test_tools_are_written_as_mistral_common_writes_them(version: str, turns: int) -> None:
    """Compared with mistral-common's own reading of the same OpenAI-shaped request."""
    body: dict[str, Any] = {"messages": TALK[:turns], "tools": [WEATHER]}
    common = MistralTokenizer.from_file(shipped_file(version))
    expected = common.encode_chat_completion(ChatCompletionRequest.from_openai(**body)).tokens
    request = decode(json.dumps(body).encode(), ChatRequest)
    encoder = MistralEncoder(shipped_file(version), mistral_vocabulary(version, 0))
    use = chat_options(request, Serving(max_n=1, sampling=NEUTRAL, context_length=100))[0].tools
    assert use is not None
    prompt = encoder.encode_chat(read_conversation(request).messages, tools=use.definitions)
    assert list(prompt.token_ids) == expected
    assert encoder.tool_format is not None


def test_an_id_of_another_provider_gets_a_stand_in(mistral_v3: PromptEncoder) -> None:
    def prompt(call_id: str, result_id: str) -> EncodedPrompt:
        call = ToolCall(id=call_id, name="f", arguments="{}")
        turns = [
            user("Hi"),
            ChatMessage(role="assistant", content="I look.", tool_calls=(call,)),
            ChatMessage(role="tool", content="x", tool_call_id=result_id),
        ]
        return mistral_v3.encode_chat(turns)

    long = prompt("call_12345678901234567890", "call_12345678901234567890")
    stand_ins = re.findall(r'"(?:call_)?id": "(\w+)"', long.text)
    assert len(stand_ins) == 2
    assert len(set(stand_ins)) == 1
    assert re.fullmatch("[a-zA-Z0-9]{9}", stand_ins[0])
    assert "I look" not in long.text  # v3 has no place for text beside a call
    assert prompt("call_other", "call_other").text != long.text


def test_deep_json_in_a_result_is_refused(mistral_v3: PromptEncoder) -> None:
    call = ToolCall(id="abcdefghi", name="f", arguments="{}")
    deep = ChatMessage(role="tool", content="[" * 100_000, tool_call_id="abcdefghi")
    turns = [user("Hi"), ChatMessage(role="assistant", tool_calls=(call,)), deep]
    with pytest.raises(InvalidRequest, match="deep"):
        mistral_v3.encode_chat(turns)


def test_ten_megabytes_of_arguments_are_refused_in_time(mistral_v3: PromptEncoder) -> None:
    call = ToolCall(id="abcdefghi", name="f", arguments=json.dumps({"a": "x" * 10_000_000}))
    with pytest.raises(ContextLengthExceeded):
        mistral_v3.encode_chat(
            [user("Hi"), ChatMessage(role="assistant", tool_calls=(call,))], max_tokens=32768
        )
