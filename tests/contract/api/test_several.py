"""Models that don't all fit in memory behind one server; one API process or two."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import api, check_error, make_settings
from maestrale.keys import add_key
from serving import ROOT, Server, serving
from tiny_mistral import write_tiny_mistral

CHAT = "/v1/chat/completions"
WORDS = {
    "north": "A wind from the north. ",
    "south": "A sea in the south. ",
    "east": "A hill in the east. ",
    "west": "A rock in the west. ",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mistral(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@contextlib.contextmanager
def several(
    file: Path, cache_dir: Path, *flags: str, models: dict[str, dict[str, Any]]
) -> Iterator[Server]:
    """A server of scripted `models`: of each what its engine is told, and its settings."""
    given = {
        name: {
            "model": each.get("model", str(file)),
            "options": {"text": WORDS[name], "tokens_per_second": "200", **each["options"]},
            "settings": each["settings"],
        }
        for name, each in models.items()
    }
    environment = {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support", "MODELS": json.dumps(given)}
    with serving(
        *("--engine", "scripted", *flags),
        cache_dir=cache_dir,
        environment=environment,
        module="several_server",
    ) as server:
        wait_until_announced(server)
        yield server


def model(kv_cache_memory: str = "60MiB", **options: str) -> dict[str, dict[str, Any]]:
    return {"options": options, "settings": {"kv_cache_memory": kv_cache_memory}}


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While it is there, west's engine doesn't start."""
    return tmp_path_factory.mktemp("stop") / "stop"


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def workers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one_at_a_time(file: Path, cache: Path, stop: Path, workers: str) -> Iterator[Server]:
    """Four models, and room for one of them."""
    models = {
        "north": model(),
        "south": model(),
        "east": model(start_seconds="3"),
        "west": model(fail_start_while=str(stop)),
    }
    flags = ("--memory-budget", "100MiB", "--api-workers", workers)
    with several(file, cache, *flags, models=models) as server:
        assert states(server) == {"north": "ready"} | dict.fromkeys(
            ("south", "east", "west"), "unloaded"
        )
        assert engines(server) == 1
        yield server


@pytest.fixture(scope="module")
def beside_a_pinned_one(file: Path, cache: Path, workers: str) -> Iterator[Server]:
    """South or east fits beside north, and east is unloaded after a second."""
    models = {"north": model(), "south": model(tokens_per_second="40"), "east": model()}
    models["south"]["settings"]["keep_alive"] = "-1"
    flags = ("--memory-budget", "140MiB", "--pinned", "north", "--keep-alive", "1s")
    more = ("--queue-timeout", "1.5", "--api-workers", workers)
    with several(file, cache, *flags, *more, models=models) as server:
        yield server


def wait_until_announced(server: Server) -> None:
    """Until every API process takes requests for all models, and the first one is loaded."""
    deadline = time.monotonic() + 60
    while "API reference:" not in server.log():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.05)


def states(server: Server) -> dict[str, str]:
    cards = httpx.get(f"{server.url}/v1/models", timeout=30).json()["data"]
    return {each["id"]: each["state"] for each in cards}


def wait(server: Server, true: Any, seconds: float = 60) -> dict[str, str]:
    """Until the models' states are so."""
    deadline = time.monotonic() + seconds
    while not true(found := states(server)):
        assert time.monotonic() < deadline, (found, server.log())
        time.sleep(0.05)
    return found


def body(model: str | None, tokens: int = 8, **more: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    messages = [{"role": "user", "content": "Speak."}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, **named, **more}


def ask(server: Server, model: str | None, tokens: int = 8) -> httpx.Response:
    return httpx.post(server.url + CHAT, json=body(model, tokens), timeout=120)


def check(answer: httpx.Response, model: str) -> None:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    text = found["choices"][0]["message"]["content"]
    assert text
    assert (WORDS[model] * 99).startswith(text)
    assert (found["model"], bool(found["system_fingerprint"])) == (model, True)


def engines(server: Server) -> int:
    """Engine processes that live."""
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.pids()]
    return sum(b"maestrale.supervise.worker" in each for each in words)


def loads(server: Server) -> int:
    return server.log().count(" is loaded (")


def only(server: Server, model: str) -> None:
    """Nothing but this model is loaded."""
    check(ask(server, model), model)
    assert {name for name, state in states(server).items() if state != "unloaded"} == {model}


def test_the_one_that_is_asked_for_is_loaded_and_an_idle_one_makes_room(
    one_at_a_time: Server,
) -> None:
    server = one_at_a_time
    only(server, "south")
    check(ask(server, None), "north")
    assert states(server)["south"] == "unloaded"
    assert engines(server) == 1
    told = httpx.get(f"{server.url}/status.json").json()["deployments"]
    assert [each["memory_bytes"] for each in told] == [60 << 20] * 4
    assert all(told[at]["last_used"] for at in (0, 1))
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_ten_clients_that_alternate_lose_nothing_and_do_not_thrash(one_at_a_time: Server) -> None:
    server, turns = one_at_a_time, 4

    def client(number: int) -> None:
        for turn in range(turns):
            model = ("north", "south")[(number + turn) % 2]
            check(ask(server, model), model)

    before = loads(server)
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(client, range(10)))
    # One change of places serves a queue: of 40 answers most find their model loaded.
    assert loads(server) - before <= 2 * turns + 4
    assert "Traceback" not in server.log()


def test_a_stream_gets_comments_while_its_model_is_loaded(one_at_a_time: Server) -> None:
    server = one_at_a_time
    only(server, "south")
    with (
        ThreadPoolExecutor() as threads,
        httpx.stream(
            "POST", server.url + CHAT, json=body("east", stream=True), timeout=60
        ) as answer,
    ):
        loading = threads.submit(wait, server, lambda found: found["east"] == "loading", 10)
        lines = list(answer.iter_lines())
        loading.result()
    assert answer.status_code == 200
    first = next(at for at, line in enumerate(lines) if line.startswith("data: "))
    assert any(line.startswith(":") for line in lines[:first])
    assert lines[-2] == "data: [DONE]"


def test_bad_requests_are_refused_by_one_that_is_not_loaded_and_stays_so(
    one_at_a_time: Server,
) -> None:
    wait(one_at_a_time, lambda found: found["west"] == "unloaded")
    too_long = {"messages": [{"role": "user", "content": "wind " * 5000}]}
    for bad in ({"n": 0}, {"stop_token_ids": [1 << 20]}, too_long):
        answer = httpx.post(one_at_a_time.url + CHAT, json=body("west") | bad, timeout=60)
        assert answer.status_code == 400, answer.text
    tokens = httpx.post(
        one_at_a_time.url + "/tokenize", json={"model": "west", "prompt": "wind"}, timeout=60
    ).json()
    assert tokens["count"] > 0
    assert states(one_at_a_time)["west"] == "unloaded"


def test_the_operator_loads_and_unloads(one_at_a_time: Server) -> None:
    server = one_at_a_time
    only(server, "north")
    root = f"{server.url}/v1/models"
    answer = httpx.post(f"{root}/south/load")
    assert (answer.status_code, answer.json()["id"]) == (202, "south")
    wait(server, lambda found: found["south"] == "ready")
    assert states(server)["north"] == "unloaded"
    answer = httpx.post(f"{root}/south/unload")
    assert (answer.status_code, answer.json()["state"]) == (202, "unloaded")
    assert set(states(server).values()) == {"unloaded"}
    assert httpx.get(f"{server.url}/health").json()["status"] == "unloaded"
    with ThreadPoolExecutor() as threads:
        long = threads.submit(ask, server, "north", 300)
        wait(server, lambda found: found["north"] == "ready")
        busy = httpx.post(f"{root}/north/unload")
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "conflict")
        check(long.result(), "north")
    assert httpx.post(f"{root}/up/load").status_code == 404
    assert httpx.get(f"{root}/south/load").status_code in (404, 405)


def test_one_that_fails_is_tried_again_and_holds_up_no_other(
    one_at_a_time: Server, stop: Path
) -> None:
    server = one_at_a_time
    stop.touch()
    answer = ask(server, "west")
    assert answer.status_code == 503
    assert "The script says not to start now." in answer.json()["error"]["message"]
    card = httpx.get(f"{server.url}/v1/models/west").json()
    assert "The script says not to start now." in card["detail"]
    check(ask(server, "north"), "north")
    again = ask(server, "west")
    assert (again.status_code, bool(again.headers["retry-after"])) == (503, True)
    stop.unlink()
    deadline = time.monotonic() + 30
    while (answer := ask(server, "west")).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    check(answer, "west")


def test_work_in_flight_is_waited_for_and_the_queue_has_its_limit(
    beside_a_pinned_one: Server,
) -> None:
    server = beside_a_pinned_one
    httpx.post(f"{server.url}/v1/models/south/load")
    wait(server, lambda found: found["south"] == "ready")
    with ThreadPoolExecutor() as threads:
        long = threads.submit(ask, server, "south", 160)
        time.sleep(0.3)
        late = ask(server, "east")
        assert late.status_code == 503
        assert late.headers["retry-after"]
        assert late.json()["error"]["code"] == "queue_timeout"
        check(long.result(), "south")


def test_an_idle_one_is_unloaded_and_a_pinned_one_stays(beside_a_pinned_one: Server) -> None:
    server = beside_a_pinned_one
    httpx.post(f"{server.url}/v1/models/east/load")
    wait(server, lambda found: found["east"] == "ready")
    wait(server, lambda found: found["east"] == "unloaded", 10)
    assert states(server)["north"] == "ready"
    assert engines(server) == 1


def test_a_budget_that_is_too_small_is_told_with_figures(file: Path, cache: Path) -> None:
    flags = ("--memory-budget", "100MiB")
    models = {"north": model(), "south": model("101MiB")}
    with several(file, cache, *flags, models=models) as server:
        answer = ask(server, "south")
        assert answer.status_code == 503
        assert "south takes 101 MiB" in answer.json()["error"]["message"]
        assert states(server)["south"] == "dead"
        check(ask(server, "north"), "north")
    models = {"north": model("200MiB"), "south": model("200MiB")}
    with (
        pytest.raises(RuntimeError, match="takes 200 MiB of memory"),
        several(file, cache, *flags, models=models),
    ):
        pass


@pytest.mark.parametrize("flags", [(), ("--keep-alive", "1s")], ids=["stays", "may go"])
def test_one_model_stays_unless_it_is_told_to_go(
    file: Path, cache: Path, flags: tuple[str, ...]
) -> None:
    given = (str(file), "--served-model-name", "only", "--engine", "scripted", *flags)
    with serving(*given, cache_dir=cache) as server:
        wait_until_announced(server)
        answer = httpx.post(f"{server.url}/v1/models/only/unload")
        assert answer.status_code == (202 if flags else 409)
        wait(server, lambda found: found == {"only": "unloaded" if flags else "ready"})
        assert ask(server, "only").status_code == 200


def test_tables_of_the_file_are_served(file: Path, cache: Path, tmp_path: Path) -> None:
    table = tmp_path / "several.toml"
    table.write_text(
        f'[serve]\nengine = "scripted"\n[[model]]\nname = "one"\naliases = ["uno"]\n'
        f'source = "{file}"\n[[model]]\nname = "two"\nsource = "{file}"\n'
    )
    with serving("--config", str(table), cache_dir=cache) as server:
        wait_until_announced(server)
        assert [*states(server)] == ["one", "uno", "two"]
        assert ask(server, "uno").json()["model"] == "one"
        assert ask(server, "two").json()["model"] == "two"


def test_two_of_one_name_end_the_start(file: Path, cache: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="Two models are called"),
        serving(str(file), str(file), "--engine", "scripted", cache_dir=cache),
    ):
        pass


def test_one_that_could_not_be_prepared_is_prepared_when_the_operator_loads_it(
    file: Path, cache: Path, tmp_path: Path, workers: str
) -> None:
    late = tmp_path / "models of mine" / "late.gguf"
    late.parent.mkdir()
    late.write_bytes(b"nothing")
    models: dict[str, dict[str, Any]] = {"north": model(), "south": model()}
    models["south"]["model"] = str(late)
    with several(file, cache, "--api-workers", workers, models=models) as server:
        root = f"{server.url}/v1/models/south"
        card = httpx.get(root).json()
        assert (card["state"], "late.gguf" in card["detail"]) == ("dead", True)
        told = ask(server, "south")
        assert told.status_code == 503
        assert str(tmp_path) not in card["detail"] + told.text
        assert str(late) in server.log()
        assert httpx.post(f"{root}/unload").status_code == 409
        shutil.copy(file, late)
        assert httpx.post(f"{root}/load").status_code == 202
        wait(server, lambda found: found["south"] == "ready")
        check(ask(server, "south"), "south")
        check(ask(server, "north"), "north")


@pytest.mark.anyio
async def test_only_an_operators_key_may_load(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    user, operator = add_key(path, "bob"), add_key(path, "carol", operator=True)
    async with api(make_settings(key_file=path)) as app:
        steered: list[tuple[str, str]] = []
        backend = app.app._backend
        backend.steering = lambda model, steering: steered.append((model, steering))
        name = backend.deployments.default.names[0]
        for secret, status in ((user, 403), (operator, 202)):
            headers = {"authorization": f"Bearer {secret}"}
            answer = await app.client.post(f"/v1/models/{name}/load", headers=headers)
            assert answer.status_code == status
        check_error(await app.client.post(f"/v1/models/{name}/load"), 401)
        assert steered == [(backend.deployments.default.id, "load")]


def test_the_command_line_says_what_is_of_one_model(tmp_path: Path) -> None:
    import sys

    command = [sys.executable, "-m", "maestrale", "serve", "a", "b", "--served-model-name", "x"]
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert found.returncode == 2
    assert "--served-model-name x is for one model, and 2 are to be served" in found.stderr
