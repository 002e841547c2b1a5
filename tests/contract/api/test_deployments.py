"""Two models behind one server, each on an engine process of its own; one API process or two."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_app import make_settings
from maestrale.api.backend import Backend
from maestrale.api.deployment import Deployments
from maestrale.errors import ModelNotFound, SettingsError
from serving import ROOT, Server, serving
from tiny_mistral import write_tiny_mistral

CHAT = "/v1/chat/completions"
TAKEN = ("ready", "degraded", "loading", "unloaded")
NORTH, SOUTH = "A wind from the north. ", "A sea in the south. "


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that differ in their tokenizers, too."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "north": write_tiny_mistral(folder / "north.gguf"),
        "south": write_tiny_mistral(folder / "south.gguf", version="v3", seed=1),
    }


@contextlib.contextmanager
def two_models(
    files: dict[str, Path], cache_dir: Path, workers: int, **south: str
) -> Iterator[Server]:
    """A server with both; `south`: what the second one's engine is told besides."""
    options = {
        "north": {"text": NORTH, "tokens_per_second": "40"},
        "south": {"text": SOUTH, "tokens_per_second": "40", **south},
    }
    models = {name: {"model": str(files[name]), "options": each} for name, each in options.items()}
    environment = {
        "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support",
        "MODELS": json.dumps(models),
    }
    flags = ("--engine", "scripted", "--api-workers", str(workers))
    with serving(
        *flags, cache_dir=cache_dir, environment=environment, module="several_server"
    ) as server:
        yield server


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def server(
    request: pytest.FixtureRequest, files: dict[str, Path], tmp_path_factory: Any
) -> Iterator[Server]:
    """Both are loaded; the second one's engine kills itself once, before its 30th token."""
    folder = tmp_path_factory.mktemp("cache")
    accident = {"crash_at_token": "30", "marker": str(folder / "accidents"), "times": "1"}
    with two_models(files, folder, request.param, **accident) as server:
        wait_for(server, "north", "south")
        yield server


def wait_for(server: Server, *names: str) -> None:
    """Until every API process takes requests for these; healthy is a server with one of them."""
    deadline = time.monotonic() + 60
    while "API reference:" not in server.log() or {
        name for name, state in listed(server).items() if state in TAKEN
    } != {*names}:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.1)


def listed(server: Server) -> dict[str, str]:
    """The state of each model, by its name."""
    answer = httpx.get(f"{server.url}/v1/models")
    return {each["id"]: each["state"] for each in answer.json().get("data", ())}


def body(model: str | None, tokens: int = 8, **more: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    messages = [{"role": "user", "content": "Speak."}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, **named, **more}


def said(server: Server, model: str | None, tokens: int = 8) -> tuple[str, str]:
    """The model that answered, and its text."""
    answer = httpx.post(server.url + CHAT, json=body(model, tokens), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["model"], answer.json()["choices"][0]["message"]["content"]


def streamed(server: Server, model: str, tokens: int) -> str:
    """The text of a stream that came to its end."""
    text, last = "", ""
    request = body(model, tokens, stream=True)
    with httpx.stream("POST", server.url + CHAT, json=request, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    text += json.loads(last)["choices"][0]["delta"].get("content") or ""
    assert last == "[DONE]", last
    return text


def metrics(server: Server, name: str) -> defaultdict[str, float]:
    """A metric's sum by model."""
    text = httpx.get(f"{server.url}/metrics").text
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(set(helps))  # one family of each name
    sums: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                sums[sample.labels["model_name"]] += sample.value
    return sums


def status(server: Server, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/status.json", params=query).json()
    return found


def test_both_are_listed_each_with_its_card(server: Server) -> None:
    assert [*listed(server)] == ["north", "south"]
    for name in ("north", "south"):
        card = httpx.get(f"{server.url}/v1/models/{name}").json()
        assert (card["id"], card["root"], card["aliases"]) == (name, name, [])
    assert httpx.get(f"{server.url}/v1/models/west").status_code == 404


def test_a_request_goes_to_the_model_that_it_names(server: Server) -> None:
    for name, words in (("south", SOUTH), ("north", NORTH)):
        model, text = said(server, name)
        assert model == name
        assert text
        assert (words * 8).startswith(text)
    assert said(server, None) == ("north", text)


def test_an_unknown_name_is_refused_with_those_that_there_are(server: Server) -> None:
    answer = httpx.post(server.url + CHAT, json=body("west"))
    assert answer.status_code == 404
    assert "north, south" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/status.json", params={"model": "west"}).status_code == 404


def test_each_has_the_words_of_its_own_vocabulary(server: Server) -> None:
    for name in ("north", "south"):
        text = {"model": name, "prompt": "The sea"}
        ids = httpx.post(f"{server.url}/tokenize", json=text).json()["tokens"]
        again = {"model": name, "tokens": ids}
        spelled = httpx.post(f"{server.url}/detokenize", json=again).json()["prompt"]
        assert "The sea" in spelled


def test_metrics_are_of_each(server: Server) -> None:
    name = "vllm:generation_tokens_total"
    before = metrics(server, name)
    said(server, "south", 8)
    said(server, "north", 8)
    said(server, "north", 8)
    after = metrics(server, name)
    assert after["south"] - before["south"] == 8
    assert after["north"] - before["north"] == 16
    assert set(metrics(server, "maestrale_engine_up")) == {"north", "south"}


def test_the_death_of_one_engine_is_no_business_of_the_other(server: Server) -> None:
    with ThreadPoolExecutor() as threads:
        other = threads.submit(streamed, server, "north", 100)
        struck = threads.submit(streamed, server, "south", 60)
        assert other.result().startswith(NORTH * 2)
        assert struck.result().startswith(SOUTH * 2)
    restarts = metrics(server, "maestrale_engine_restarts_total")
    assert (restarts["north"], restarts["south"]) == (0, 1)
    replayed = metrics(server, "maestrale_replayed_requests_total")
    assert (replayed["north"], replayed["south"]) == (0, 1)


def test_status_tells_of_both_and_of_one_in_full(server: Server) -> None:
    said(server, "south")
    time.sleep(1)  # an engine tells its counts twice a second
    whole = status(server)
    assert whole["models"] == ["north", "south"]
    assert [each["id"] for each in whole["deployments"]] == ["north", "south"]
    assert {each["state"] for each in whole["deployments"]} == {"ready"}
    north, south = whole["deployments"]
    assert whole["totals"] == north["totals"]
    assert status(server, model="south")["totals"] == south["totals"]
    assert south["totals"]["generation_tokens"] != north["totals"]["generation_tokens"]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_does_not_start_keeps_no_other_from_answering(
    files: dict[str, Path], tmp_path: Path, workers: int
) -> None:
    reason = "There is no such sea."
    with two_models(files, tmp_path, workers, fail_start=reason) as server:
        wait_for(server, "north", "south")
        answer = httpx.post(server.url + CHAT, json=body("south"), timeout=30)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert reason in answer.json()["error"]["message"]
        card = httpx.get(f"{server.url}/v1/models/south").json()
        assert reason in card["detail"]
        assert listed(server)["north"] == "ready"
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert said(server, "north")[0] == "north"
        assert reason in server.log()


def test_names_are_found_and_those_of_two_are_refused() -> None:
    north, south = (make_settings(served_model_name=(name,)) for name in ("north", "south"))
    deployments = Backend(make_settings(), [north, south]).deployments
    assert deployments.resolve(None) is deployments.default is deployments["north"]
    assert deployments.resolve("south") is deployments["south"]
    # While one is loaded, any name may turn out to be its own.
    assert deployments.resolve("west") is deployments["north"]
    for each in deployments:
        each.names = each.settings.served_model_name
    with pytest.raises(ModelNotFound, match="north, south"):
        deployments.resolve("west")
    with pytest.raises(SettingsError, match="'north'"):
        Deployments([*deployments, deployments["north"]])


def test_a_name_that_is_known_late_is_refused_where_another_has_it() -> None:
    one, other = (make_settings(model=f"/models/{place}.gguf") for place in ("a", "b"))
    deployments = Backend(make_settings(), [one, other]).deployments
    deployments.default.names = ("north",)
    deployments.check_name(deployments.default, "north")
    deployments.check_name(deployments["/models/b.gguf"], "south")
    with pytest.raises(SettingsError, match="'north'"):
        deployments.check_name(deployments["/models/b.gguf"], "north")
