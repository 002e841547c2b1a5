"""The pages in a real browser, on the real server with the real model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from api_app import api_in_thread
from benchmarks.served import Served
from browser import DESKTOP, LONG, PHONE, Visitor, axe_source, barriers, browsing
from faults import kill, metric, restarts, until_ready
from serving import Server, clean_environment, serving

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "sk-maestrale-for-the-browser"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Of this module alone: while it lives, no other test could run an event loop.
    expect.set_options(timeout=LONG)
    with browsing() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server.url)
    yield visitor
    visitor.close()


def test_a_scenario_streams_and_its_numbers_are_shown(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_role("button", name="The plot of the Lion King").click()
    expect(page.locator(".prose.running")).not_to_be_empty()  # there while it still comes
    text = visitor.finished()
    assert len(text) > 20
    figures = visitor.answers.locator(".figures").inner_text()
    assert re.search(r"First token\s+[\d.]+ m?s", figures)
    assert re.search(r"Speed\s+[\d.]+ tokens/s", figures)
    assert re.search(r"Tokens\s+\d+ in.*, \d+ out", figures)
    assert re.search(r"Seed\s+1337", figures)
    expect(page.locator("#live")).to_contain_text("The answer:")
    page.get_by_role("button", name="Try again").click()
    visitor.page.wait_for_timeout(300)
    assert visitor.finished() == text  # same seed, same words


def test_an_article_and_the_questions_that_follow(visitor: Visitor) -> None:
    page = visitor.open()
    page.get_by_role("button", name="Summarise the article").click()
    visitor.finished()
    expect(page.locator("#suggestions button")).to_have_count(3)
    page.get_by_role("button", name="What kind of wind is it?").click()
    visitor.finished(2)
    assert "(" in visitor.answers.last.locator(".figures").inner_text()  # the article was cached
    expect(page.locator("#suggestions button")).to_have_count(2)


def test_stop_keeps_what_came_and_ends_the_work(visitor: Visitor, server: Server) -> None:
    page = visitor.open()
    visitor.settle(max_tokens="2000")
    visitor.say("Write a very long story about a ship, a storm and an island.")
    expect(page.locator(".prose.running")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.get_by_label("Your message").press("Escape")
    text = visitor.finished()
    assert text
    expect(visitor.answers.locator(".figures")).to_contain_text("Stopped")
    for _ in range(100):
        if httpx.get(f"{server.url}/status.json").json()["now"]["running"] == 0:
            break
        page.wait_for_timeout(100)
    assert httpx.get(f"{server.url}/status.json").json()["now"]["running"] == 0


def test_conversations_survive_a_reload_and_can_be_edited(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.settle(max_tokens="24", seed="5", system="Answer in one sentence.")
    visitor.say("What is the capital of France?")
    first = visitor.finished()
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".card")).to_have_count(3)
    visitor.say("Name a colour.")
    visitor.finished()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Name a colour.")
    expect(visitor.answers).to_have_count(1)
    page.get_by_role("button", name="What is the capital of France?", exact=True).click()
    assert visitor.finished() == first
    expect(page.locator("#system")).to_have_value("Answer in one sentence.")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("What is the capital of Italy?")
    page.get_by_role("button", name="Send again").click()
    assert visitor.finished() != first
    expect(page.get_by_role("article", name="You")).to_have_count(1)
    page.get_by_role("button", name="Delete What is the capital of Italy?").click()
    expect(page.locator("#conversations li")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#conversations li")).to_have_count(2)


def test_json_by_a_schema(visitor: Visitor) -> None:
    page = visitor.open()
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("radio", name="Schema").check()
    page.locator("#schema").fill('{"type": ')
    expect(page.locator("#schema-fault")).to_contain_text("no JSON yet")
    visitor.say("Is Paris a capital?")
    expect(page.locator("#schema")).to_be_focused()  # not sent, and shown why
    expect(visitor.answers).to_have_count(0)
    page.locator("#schema").fill(json.dumps(SCHEMA))
    page.get_by_label("Your message").press("Enter")
    visitor.finished()
    expect(visitor.answers.locator(".code-head")).to_contain_text("valid")
    document = json.loads(visitor.answers.locator("pre").inner_text())
    assert set(document) == {"city", "capital"}
    assert isinstance(document["capital"], bool)


def test_the_request_as_code_runs_and_says_the_same(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open()
    visitor.settle(max_tokens="16", seed="7", system='It\'s a "test": $HOME `id` \\n.')
    visitor.say("Say 'hello' to Zoë's cat 🐈.\nThen \"bye\".")
    visitor.finished()
    page.locator(".tools").last.get_by_role("button", name="Copy").click()
    said = page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("button", name="As code").click()
    code = {}
    for name in ("curl", "Python", "JavaScript"):
        page.get_by_role("tab", name=name).click()
        page.locator("#snippet").get_by_role("button", name="Copy").click()
        code[name] = page.evaluate("navigator.clipboard.readText()")
    streamed = run(["bash", "-c", code["curl"]])
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == said
    assert run([sys.executable, "-c", code["Python"]]).removesuffix("\n") == said
    if shutil.which("node"):
        script = tmp_path / "request.mjs"
        script.write_text(code["JavaScript"])
        assert run(["node", str(script)]).removesuffix("\n") == said


def run(command: list[str]) -> str:
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HOSTILE = [
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>",
    "<iframe src='http://evil.example'></iframe><svg onload='window.broken = 3'></svg>",
    "![picture](http://evil.example/track.png) ![data](data:image/svg+xml,<svg/>)",
    "[click](javascript:window.broken=4) [fine](https://example.com) <http://auto.example>",
    "```html\n<script>window.broken = 5</script>\n```",
    "| a | b |\n|---|---|\n| <b onclick='window.broken=6'>x</b> | y |",
    "<style>body{display:none}</style><base href='http://evil.example'><form action=x>",
    "\u202eright to left\u202c שלום עולם، مرحبا بالعالم",
    '```"><img src=x onerror=window.broken=7>\ncode\n```',
    "[x]: http://evil.example 'title\"onmouseover=window.broken=8'\n[x]",
]


def test_hostile_output_stays_text(browser: Browser) -> None:
    # No model can be made to say just this: here the scripted engine does.
    answer = "\n\n".join([*HOSTILE, "x" * 20_000, "word " * 50])
    options = {"text": answer, "tokens_per_step": "32"}
    with api_in_thread(options=options, max_model_len=60_000) as url:
        visitor = Visitor(browser, url, viewport=PHONE)
        page = visitor.open()
        visitor.settle(max_tokens="50000")
        page.get_by_role("button", name="Close settings").click()
        visitor.say("Hello")
        visitor.finished()
        prose = visitor.answers.locator(".prose")
        assert page.evaluate("window.broken") is None
        tags = set(prose.evaluate("e => [...e.querySelectorAll('*')].map(x => x.localName)"))
        assert not tags & {"script", "iframe", "img", "style", "base", "form", "object", "embed"}
        names = prose.evaluate(
            "e => [...e.querySelectorAll('*')].flatMap(x => [...x.attributes].map(a => a.name))"
        )
        assert not [name for name in names if name.startswith("on") or name == "style"]
        expect(prose).to_contain_text("<script>window.broken = 1</script>")
        links = prose.locator("a").evaluate_all("all => all.map(a => [a.protocol, a.rel])")
        assert links
        assert all(scheme in ("http:", "https:") for scheme, _ in links)
        assert all("noopener" in rel and "noreferrer" in rel for _, rel in links)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.querySelector('.scroll').scrollLeft") == 0
        assert prose.locator("p[dir=auto]").count() > 0
        page.reload()  # and once more, from storage
        visitor.finished()
        assert page.evaluate("window.broken") is None
        visitor.close()


def test_the_engine_is_killed_and_the_answer_goes_on(
    browser: Browser, cache_dir: Path, prepared_model: Path
) -> None:
    with serving(cache_dir=cache_dir) as server:
        visitor = Visitor(browser, server.url)
        page = visitor.open()
        visitor.settle(max_tokens="160", seed="11")
        visitor.say("Tell me a story about the sea.")
        expect(page.locator(".prose.running")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
        kill(server)
        text = visitor.finished()
        assert restarts(server) == 1
        assert metric(server, "maestrale_replayed_requests_total") == 1
        expect(page.locator(".notice.bad:visible")).to_have_count(0)
        until_ready(server)
        page.get_by_role("button", name="Try again").click()
        page.wait_for_timeout(300)
        assert visitor.finished() == text  # what it would have been without the accident
        page.goto(f"{server.url}/status")
        expect(page.locator("#events")).to_contain_text("The engine died and was replaced")
        expect(page.locator("#totals")).to_contain_text("fp_")
        visitor.close()


def test_the_whole_server_is_killed_and_the_answer_goes_on(
    browser: Browser, cache_dir: Path, prepared_model: Path, tmp_path: Path
) -> None:
    served = Served(tmp_path, "--durable", "--cache-dir", str(cache_dir))
    served.start()
    visitor = Visitor(browser, served.url)
    try:
        page = visitor.open()
        visitor.settle(max_tokens="160", seed="11")
        visitor.say("Tell me a story about the sea.")
        expect(page.locator(".prose.running")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
        served.kill()
        expect(page.locator(".paused:visible")).to_contain_text("The connection is lost")
        served.start()
        text = visitor.finished()
        expect(page.locator(".notice.bad:visible")).to_have_count(0)
        page.get_by_role("button", name="Try again").click()
        page.wait_for_timeout(300)
        assert visitor.finished() == text
    finally:
        visitor.close()
        served.stop()


def test_keys(browser: Browser, cache_dir: Path, prepared_model: Path) -> None:
    with serving("--api-key", KEY, cache_dir=cache_dir) as server:
        visitor = Visitor(browser, server.url)
        page = visitor.open()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("asks for a key")
        page.get_by_label("API key", exact=True).fill("sk-wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("not known")
        page.get_by_label("API key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#state")).to_have_attribute("data-state", "ready")
        visitor.settle(max_tokens="8")
        visitor.say("Hello")
        visitor.finished()
        page.get_by_role("button", name="As code").click()
        code = page.locator("#snippet").inner_text()
        assert "Bearer YOUR_KEY" in code
        assert KEY not in page.content()
        page.goto(f"{server.url}/status")
        expect(page.locator("#tiles .tile")).to_have_count(8)
        assert page.evaluate("Object.values(localStorage).join()").find(KEY) < 0
        other = visitor.context.new_page()  # another tab has another session
        other.goto(f"{server.url}/status")
        expect(other.get_by_role("dialog")).to_be_visible()
        expect(other.locator("#tiles .tile")).to_have_count(0)
        other.get_by_label("API key", exact=True).fill(KEY)
        other.get_by_label("Keep it on this device").check()
        other.keyboard.press("Enter")
        expect(other.locator("#tiles .tile")).to_have_count(8)
        other.set_viewport_size(PHONE)
        for path in ("status", "usage"):  # the button for the key stands among the others
            other.goto(f"{server.url}/{path}")
            expect(other.get_by_role("button", name="API key")).to_be_visible()
            assert other.evaluate("document.documentElement.scrollWidth <= innerWidth")
        third = visitor.context.new_page()
        third.goto(server.url)
        expect(third.locator("#state")).to_have_attribute("data-state", "ready")
        visitor.close()


def test_errors_in_plain_words(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.say("word " * 9000)
    visitor.finished()
    expect(visitor.answers).to_contain_text("The conversation is too long for this model")
    expect(visitor.answers).to_contain_text("8192")
    visitor.context.set_offline(True)
    page.get_by_role("button", name="Try again").click()
    expect(visitor.answers).to_contain_text("The server can't be reached")
    visitor.context.set_offline(False)
    visitor.complaints.clear()


def test_one_of_several_models_is_picked(visitor: Visitor) -> None:
    known = {"object": "model", "task": "chat"}
    models = [{**known, "id": name, "root": name} for name in ("chat", "coder")]
    models += [{**models[0], "id": "gpt-4o"}, {**known, "id": "e5", "root": "e5", "task": "embed"}]
    visitor.page.route("**/v1/models", lambda route: route.fulfill(json={"data": models}))
    page = visitor.open()
    visitor.settle()
    expect(page.locator("#state")).to_have_text("chat")
    assert page.locator("#model option").all_inner_texts() == ["chat", "coder"]
    page.locator("#model").select_option("coder")
    expect(page.locator("#state")).to_have_text("coder")
    with page.expect_request("**/v1/chat/completions") as asked:
        visitor.say("Hello")
    assert '"model":"coder"' in (asked.value.post_data or "")
    visitor.finished()


def test_full_storage_is_said_and_loses_nothing_shown(visitor: Visitor) -> None:
    page = visitor.open()
    page.evaluate(
        """() => { let size = 1 << 22, part = 0;
        while (size > 0) try { localStorage.setItem(`full${part++}`, 'x'.repeat(size)); }
        catch { size >>= 1; } }"""
    )
    visitor.settle(max_tokens="8")
    visitor.say("Hello")
    visitor.finished()
    expect(page.locator("#storage-notice")).to_contain_text("storage is full")


def test_by_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("Say hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("twice.")
    page.keyboard.press("Enter")
    visitor.finished()
    expect(page.get_by_role("article", name="You")).to_contain_text("Say hi\ntwice.")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Your message")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_serious_barriers(
    browser: Browser, server: Server, viewport: dict[str, int], scheme: str
) -> None:
    axe = axe_source()
    visitor = Visitor(browser, server.url, viewport=viewport, color_scheme=scheme)
    page = visitor.open()
    expect(page.locator(".card")).to_have_count(3)
    assert barriers(page, axe) == []
    page.get_by_role("button", name="Any JSON object").click()
    visitor.finished()
    expect(page.locator(".hljs-attr").first).to_be_visible()
    assert barriers(page, axe) == []
    page.get_by_role("button", name="As code").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert barriers(page, axe) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("radio", name="Schema").check()
    assert barriers(page, axe) == []
    if viewport is PHONE:
        page.get_by_role("button", name="Close settings").click()
        page.get_by_role("button", name="Conversations").click()
        assert barriers(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(f"{server.url}/status")
    expect(page.locator("#tiles .tile")).to_have_count(8)
    assert barriers(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.close()


def test_the_status_page_shows_a_load(visitor: Visitor, server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 40}
    for _ in range(2):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    page = visitor.open("/status")
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.get_by_role("heading", level=1)).to_have_text("smollm2-135m-instruct")
    expect(page.locator(".tile", has_text="First token")).to_contain_text(re.compile(r"\d m?s"))
    expect(page.locator("#charts svg")).to_have_count(6)
    for name in ("Tokens out per second", "Time to first token", "Time between tokens"):
        chart = page.get_by_role("img", name=re.compile(f"^{name}.*highest [1-9]"))
        expect(chart.locator("path.line").first).to_be_attached()
    assert page.locator("#totals").inner_text()


def test_the_usage_page_shows_who_used_what(visitor: Visitor, server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    page = visitor.open("/usage")
    expect(page.locator(".tile", has_text="Tokens out")).to_contain_text(re.compile(r"[1-9]"))
    expect(page.locator("#charts svg")).to_have_count(3)
    chart = page.get_by_role("img", name=re.compile(r"^Tokens\. in: [1-9]"))
    expect(chart.locator("rect.bar").first).to_be_attached()
    row = page.locator("#models tbody tr", has_text="smollm2-135m-instruct")
    expect(row.locator("td").first).to_have_text(re.compile(r"[1-9]"))
    page.locator("#key-filter").select_option("-")
    expect(page.locator("#keys tbody tr")).to_have_count(1)


def test_thoughts_are_folded_away(browser: Browser) -> None:
    text = "<think>Hm, <b>bold</b>.</think>Yes."
    with api_in_thread(options={"text": text}, thinks=True) as url:
        visitor = Visitor(browser, url)
        page = visitor.open()
        visitor.say("Well?")
        assert visitor.finished() == "Yes."
        thought = visitor.answers.locator("details.thought")
        expect(thought.locator(".text")).to_be_hidden()
        thought.locator("summary").click()
        expect(thought.locator(".text")).to_have_text("Hm, <b>bold</b>.")
        page.reload()
        expect(visitor.answers.locator("details.thought summary")).to_have_text("Thought")
        visitor.close()
    with api_in_thread(options={"text": "Yes."}) as url:
        visitor = Visitor(browser, url)
        visitor.open()
        visitor.say("Well?")
        assert visitor.finished() == "Yes."
        expect(visitor.answers.locator("details.thought")).to_be_hidden()
        visitor.close()
