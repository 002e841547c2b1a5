"""The collection file: Postman's schema, what the reader makes of it, what it refuses."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from maestrale.errors import CannotVerify
from maestrale.verify.collection import (
    bundled_collection,
    bundled_environment,
    read_collection,
    read_environment,
)
from serving import ROOT

SCHEMA = ROOT / "tests" / "data" / "postman-schema"
V21 = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
GIST = "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "  # space kept


def item(**request: Any) -> dict[str, Any]:
    return {"name": "one", "request": {"method": "GET", "url": "http://host/x", **request}}


def collection(tmp_path: Path, *items: dict[str, Any], **more: Any) -> Path:
    path = tmp_path / "collection.json"
    data = {"info": {"name": "mine", "schema": V21}, "item": list(items), **more}
    path.write_text(json.dumps(data))
    return path


def validator() -> jsonschema.Draft7Validator:
    """Postman's schema in one piece: its parts go where its references look for them."""
    root = json.loads((SCHEMA / "collection.json").read_text())
    # As published, two of the parts carry comments, which are no JSON.
    texts = [path.read_text() for path in (SCHEMA / "collection").glob("*.json")]
    parts = [json.loads(re.sub(r"(?m)^\s*//.*$|/\*[\s\S]*?\*/", "", text)) for text in texts]
    root["definitions"] = {part.pop("$id").rpartition("/")[2]: part for part in parts}
    return jsonschema.Draft7Validator(root)


def test_the_bundled_collection_is_valid_for_postmans_schema() -> None:
    data = json.loads(bundled_collection().read_text())
    validator().validate(data)
    broken = copy.deepcopy(data)
    broken["item"][0]["item"][0]["request"]["method"] = ["GET"]
    assert not validator().is_valid(broken), "the schema refuses nothing: is it read whole?"


def test_the_bundled_collection_has_the_folders_and_examples_that_it_promises() -> None:
    data = json.loads(bundled_collection().read_text())
    assert [folder["name"] for folder in data["item"]] == [
        "Is it up",
        "Embeddings",
        "Rerank",
        "Simple questions",
        "Summarise an article, then ask about it",
        "JSON only",
        "Streaming",
        "Responses",
        "Messages",
        "Fill in the middle",
        "What must fail",
    ]
    requests = [one for folder in data["item"] for one in folder["item"]]
    assert all(folder["description"] for folder in data["item"])
    assert all(one["event"] for one in requests)
    assert all(one["response"] for one in requests)
    article = next(one["value"] for one in data["variable"] if one["key"] == "article")
    assert 900 < len(article.split()) < 1100
    environment = read_environment(bundled_environment())
    assert list(environment.values) == ["baseUrl", "apiKey", "model"]


def test_the_gists_request_is_there_word_for_word() -> None:
    request = next(
        one
        for one in read_collection(bundled_collection()).requests
        if one.name == "The plot of the Lion King"
    )
    assert request.body is not None
    assert json.loads(request.body) == {
        "model": "{{model}}",
        "messages": [{"role": "user", "content": GIST}],
        "temperature": 0.7,
        "top_p": 1,
        "max_tokens": 512,
        "stream": False,
        "safe_prompt": False,
        "random_seed": 1337,
    }


def test_scripts_and_auth_come_down_from_the_folders(tmp_path: Path) -> None:
    def event(source: str) -> list[dict[str, Any]]:
        return [{"listen": "test", "script": {"exec": [source]}}]

    inner = {**item(), "event": event("3")}
    folder = {"name": "f", "item": [inner], "event": event("2"), "auth": {"type": "noauth"}}
    bearer = {"type": "bearer", "bearer": [{"key": "token", "value": "t"}]}
    path = collection(tmp_path, folder, item(), event=event("1"), auth=bearer)
    first, second = read_collection(path).requests
    assert first.tests == ("1", "2", "3")
    assert first.location == ("f", "one")
    assert first.auth is not None
    assert first.auth.kind == "noauth"
    assert second.tests == ("1",)
    assert second.auth is not None
    assert second.auth.values == {"token": "t"}


def test_the_url_is_built_from_its_parts(tmp_path: Path) -> None:
    url = {
        "raw": "not this",
        "protocol": "https",
        "host": ["api", "example"],
        "port": "8443",
        "path": ["v1", ":id", "x"],
        "query": [{"key": "a", "value": "1"}, {"key": "b", "value": "2", "disabled": True}],
        "variable": [{"key": "id", "value": "7"}],
    }
    (request,) = read_collection(collection(tmp_path, item(url=url))).requests
    assert request.url == "https://api.example:8443/v1/7/x?a=1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ("[1, 2]", "no JSON object"),
        ('{"a": 1}', "lacks 'info' or 'item'"),
        ('{"info": {"schema": "v2.0.0"}, "item": []}', "another version"),
        (json.dumps({"info": {"schema": V21}, "item": []}), "holds no request"),
        (json.dumps({"info": {"schema": V21}, "item": [{"name": "x"}]}), "not a well-formed"),
        (json.dumps({"info": {"schema": V21}, "item": [3]}), "not a well-formed"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_what_is_no_collection_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CannotVerify, match=message):
        read_collection(path)


def test_files_that_are_not_there_or_no_environment(tmp_path: Path) -> None:
    with pytest.raises(CannotVerify, match="No such file"):
        read_collection(tmp_path / "none.json")
    (tmp_path / "e.json").write_text('{"name": "x"}')
    with pytest.raises(CannotVerify, match="lacks 'values'"):
        read_environment(tmp_path / "e.json")


@pytest.mark.parametrize(
    ("request_part", "named"),
    [
        ({"auth": {"type": "oauth2", "oauth2": []}}, "auth of type oauth2"),
        ({"body": {"mode": "formdata", "formdata": []}}, "a body of mode formdata"),
        ({"body": {"mode": "file", "file": {"src": "/etc/passwd"}}}, "a body of mode file"),
        ({"proxy": {"host": "x"}}, "proxy"),
        ({"certificate": {"name": "x"}}, "certificate"),
    ],
)
def test_what_the_runner_lacks_is_refused_by_name(
    tmp_path: Path, request_part: dict[str, Any], named: str
) -> None:
    with pytest.raises(CannotVerify, match=f"'one' uses {named}"):
        read_collection(collection(tmp_path, item(**request_part)))


def test_disabled_variables_and_secrets_of_an_environment(tmp_path: Path) -> None:
    values = [
        {"key": "a", "value": "1"},
        {"key": "b", "value": "2", "enabled": False},
        {"key": "c", "value": "hush", "type": "secret"},
    ]
    path = tmp_path / "e.json"
    path.write_text(json.dumps({"name": "e", "values": values}))
    environment = read_environment(path)
    assert environment.values == {"a": "1", "c": "hush"}
    assert environment.secrets == ("hush",)
