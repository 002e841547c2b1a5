"""Workloads: repeatable, valid, and the collection's own where they say so."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from maestrale.bench.conversation import BenchConversation, WorkloadOptions
from maestrale.bench.file import from_file
from maestrale.bench.load import poisson
from maestrale.bench.workloads import NAMES, conversations, known
from maestrale.errors import CannotBench
from serving import ROOT

COLLECTION = (ROOT / "postman" / "maestrale.postman_collection.json").read_text()


def some(name: str, count: int = 20, **options: object) -> list[BenchConversation]:
    series = conversations(name, WorkloadOptions(**options))  # type: ignore[arg-type]
    return list(itertools.islice(series, count))


def test_every_name_is_a_workload() -> None:
    assert set(NAMES) == set(known())
    with pytest.raises(CannotBench, match="chat, questions, article"):
        conversations("nothing", WorkloadOptions())


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_again_and_another_seed_something_else(name: str) -> None:
    assert some(name, seed=1) == some(name, seed=1)
    assert some(name, seed=1) != some(name, seed=2)


@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_well_formed(name: str) -> None:
    for conversation in some(name):
        for number, turn in enumerate(conversation.turns):
            roles = [message["role"] for message in turn.messages]
            assert roles[-1] == "user"
            assert number == 0 or roles == ["user"]
            assert all(message["content"] for message in turn.messages)
            assert "{{" not in json.dumps([turn.messages, turn.fields])
            assert not {"model", "stream", "messages"} & set(turn.fields)
            assert turn.fields["max_tokens"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_options_change_every_request(name: str) -> None:
    for conversation in some(name, max_tokens=7, ignore_eos=True):
        for turn in conversation.turns:
            assert turn.fields["max_tokens"] == 7
            assert turn.fields["ignore_eos"] is True


@pytest.mark.parametrize("name", ["questions", "article", "json"])
def test_scenarios_are_the_collections(name: str) -> None:
    for conversation in some(name):
        for turn in conversation.turns:
            words = str(turn.messages[-1]["content"]).rsplit("\n\n", 1)[-1]
            assert json.dumps(json.dumps(words))[3:-3] in COLLECTION, words


def test_the_article_is_asked_about_in_four_turns_and_each_reader_begins_anew() -> None:
    first, second = some("article", 2)
    assert len(first.turns) == 4
    assert first.turns[1:] == second.turns[1:]
    openings = [each.turns[0].messages[0]["content"] for each in (first, second)]
    assert openings[0][:12] != openings[1][:12]
    assert all(len(opening.split()) > 700 for opening in openings)


def test_json_requests_carry_their_schema() -> None:
    fields = [conversation.turns[0].fields for conversation in some("json", 8)]
    assert all("response_format" in one for one in fields)
    assert any("schema" in json.dumps(one) for one in fields)


def test_the_shared_prefix_is_shared() -> None:
    systems = {json.dumps(each.turns[0].messages[0]) for each in some("shared-prefix")}
    questions = {json.dumps(each.turns[0].messages[1]) for each in some("shared-prefix")}
    assert len(systems) == 1
    assert len(questions) > 5


def test_random_lengths_keep_to_their_range() -> None:
    found = some("random", 400, input_words=(10, 100), output_tokens=(5, 5))
    lengths = [len(each.turns[0].messages[0]["content"].split()) for each in found]
    assert min(lengths) >= 10
    assert max(lengths) <= 100
    assert 25 < statistics.median(lengths) < 40  # the middle on a logarithmic scale is 32
    assert {each.turns[0].fields["max_tokens"] for each in found} == {5}


def test_arrivals_are_poisson() -> None:
    times = list(itertools.islice(poisson(50.0, seed=3), 20_000))
    assert times == list(itertools.islice(poisson(50.0, seed=3), 20_000))
    assert times[:5] != list(itertools.islice(poisson(50.0, seed=4), 5))
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *times])]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    # Exponential gaps: the standard deviation is the mean; and 1/e of them are longer than it.
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.jsonl"
    file.write_text(text)
    return file


def test_a_file_of_requests(tmp_path: Path) -> None:
    request = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "stream": False}
    lines = "\n".join([json.dumps(request), "", json.dumps({**request, "model": "x", "top_p": 1})])
    found = list(itertools.islice(from_file(write(tmp_path, lines), WorkloadOptions()), 4))
    assert all(len(each.turns) == 1 for each in found)
    fields = [each.turns[0].fields for each in found[:2]]
    assert sorted(fields, key=len) == [{"max_tokens": 9}, {"max_tokens": 9, "top_p": 1}]


def test_a_file_of_sharegpt(tmp_path: Path) -> None:
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "One?"},
        {"from": "gpt", "value": "1"},
        {"from": "human", "value": "Two?"},
        {"from": "gpt", "value": "2"},
    ]
    file = write(tmp_path, json.dumps([{"id": "a", "conversations": said}]))
    (found,) = itertools.islice(from_file(file, WorkloadOptions()), 1)
    assert [[one["content"] for one in turn.messages] for turn in found.turns] == [
        ["Be brief.", "One?"],
        ["Two?"],
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "holds no request"),
        ("not json", "neither JSON lines nor"),
        ('{"messages": []}', "line 1"),
        ('{"a": 1}', "line 1"),
        ("[1]", "entry 1"),
        ('{"conversations": [{"from": "gpt", "value": "x"}]}', "line 1"),
        ('{"conversations": [{"from": "nobody", "value": "x"}]}', "nobody"),
        ('{"conversations": [3]}', "'from' and 'value'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(CannotBench, match=part):
        from_file(write(tmp_path, text), WorkloadOptions())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotBench, match=r"Can't read .*none\.jsonl"):
        from_file(tmp_path / "none.jsonl", WorkloadOptions())
