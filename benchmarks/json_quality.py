"""Does JSON make sense? Answers of this server and of llama.cpp's on the same file, counted.

The gist's third scenario is JSON only. Each question is asked with as many seeds as `--answers`,
freely (`json_object`) and with a schema (`json_schema`), at the sampling that the model's makers
advise, of both servers alike. Counted are the answers that end by themselves and parse; those
whose keys are all words; those that have exactly the schema's keys, where there is one; those
whose values all say something; and the tokens of an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.output import say, write_page
from benchmarks.peers import install
from benchmarks.peers.__main__ import bundled_gguf
from benchmarks.peers.peers import BUNDLED
from benchmarks.peers.processes import free_port, running

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "api.md"
NAME = "json-quality"  # of the table, on its page
MAX_TOKENS = 300
SAMPLING = {"temperature": 0.2, "top_p": 0.9}  # what SmolLM2's makers advise
PATIENCE = 300.0  # seconds
AT_ONCE = 4

QUESTIONS = (
    ("In which year did Nelson Mandela become president of South Africa? Answer in JSON.",
     {"name": {"type": "string"}, "country": {"type": "string"}, "year": {"type": "integer"}}),
    ("Describe a cat in JSON.",
     {"name": {"type": "string"}, "colour": {"type": "string"}, "age": {"type": "integer"}}),
    ("Give me a recipe for pancakes as a JSON object.",
     {"title": {"type": "string"}, "minutes": {"type": "integer"},
      "ingredients": {"type": "array", "items": {"type": "string"}, "maxItems": 6}}),
    ("Name the capital of Italy and its population. Answer in JSON only.",
     {"capital": {"type": "string"}, "population": {"type": "integer"}}),
)  # fmt: skip


@dataclass
class Row:
    """What one server's answers of one kind were like."""

    title: str
    kind: str
    answers: int = 0
    ended: int = 0
    worded: int = 0
    """Ended, and all keys have a letter."""
    exact: int = 0
    """Ended, and the keys are the schema's."""
    telling: int = 0
    """Ended, and every value has a letter or a digit."""
    tokens: list[int] = field(default_factory=list)


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key, and every value at an end, of a document: ("key", k) and ("value", v)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield "key", key
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)
    else:
        yield "value", value


def count(row: Row, choice: Mapping[str, Any], tokens: int, keys: set[str] | None) -> None:
    """Add one answer to its row."""
    row.answers += 1
    row.tokens.append(tokens)
    if choice["finish_reason"] != "stop":
        return
    try:
        document = json.loads(choice["message"]["content"])
    except ValueError:
        return
    row.ended += 1
    found = list(walk(document))
    names = [str(each) for what, each in found if what == "key"]
    values = [each for what, each in found if what == "value"]
    row.worded += bool(names) and all(any(map(str.isalpha, name)) for name in names)
    row.exact += isinstance(document, dict) and set(document) == keys
    row.telling += bool(values) and all(any(map(str.isalnum, str(value))) for value in values)


def ask(url: str, model: str, row: Row, answers: int) -> None:
    """Ask all questions of one kind. Raises: httpx.HTTPError."""

    def one(question: str, properties: Mapping[str, Any], seed: int) -> None:
        form: dict[str, Any] = {"type": "json_object"}
        if row.kind == "json_schema":
            schema = {"type": "object", "properties": properties, "required": [*properties]}
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "response_format": form,
            "max_tokens": MAX_TOKENS,
            "seed": seed,
            **SAMPLING,
        }
        answer = client.post(f"{url}/v1/chat/completions", json=body).raise_for_status().json()
        keys = set(properties) if row.kind == "json_schema" else None
        count(row, answer["choices"][0], answer["usage"]["completion_tokens"], keys)

    with httpx.Client(timeout=PATIENCE) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [
            pool.submit(one, question, properties, seed)
            for question, properties in QUESTIONS
            for seed in range(answers)
        ]
        for each in asked:
            each.result()


def measured(title: str, command: Sequence[str], model: str, answers: int) -> list[Row]:
    """Start one server, and count its answers of both kinds."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    rows = [Row(title, kind) for kind in ("json_object", "json_schema")]
    with tempfile.TemporaryDirectory(prefix="json-quality-") as scratch:
        filled = [part.replace("{port}", str(port)) for part in command]
        with running(filled, Path(scratch, "log"), {}) as server:
            server.wait_until_healthy(port, PATIENCE)
            for row in rows:
                ask(url, model, row, answers)
                say(f"{row.title}, {row.kind}: {row.ended} of {row.answers} ended")
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """The table: shares in per cent of all answers."""
    lines = [
        f"{len(QUESTIONS)} questions, each with {rows[0].answers // len(QUESTIONS)} seeds; "
        f"at most {MAX_TOKENS} tokens; per cent of all answers:",
        "",
        "| server | kind | end | keys are words | exactly the schema's keys "
        "| values say something | tokens, median |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        shares = [row.ended, row.worded, row.exact, row.telling]
        cells = [f"{100 * share / row.answers:.0f}" for share in shares]
        if row.kind == "json_object":
            cells[2] = ""
        cells.append(f"{statistics.median(row.tokens):.0f}")
        lines.append(f"| {row.title} | {row.kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser("json-quality", description=__doc__)
    parser.add_argument("--llama-server", type=Path, help="this one; else it is compiled here")
    parser.add_argument("--answers", type=int, default=20, help="of each question and kind")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/maestrale-peers"))
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    peers = options.cache.expanduser()
    llama_server = options.llama_server or install.llamacpp(peers, say) / "llama-server"
    threads = str(len(os.sched_getaffinity(0)))
    ours = [str(ROOT / "maestrale"), "serve", "--port", "{port}"]
    llama = [str(llama_server), "-m", str(bundled_gguf()), "--host", "127.0.0.1"]
    llama += ["--port", "{port}", "-t", threads, "-c", "8192", "-np", str(AT_ONCE), "--jinja"]
    rows = measured("maestrale", ours, BUNDLED, options.answers)
    rows += measured("llama.cpp's server", llama, "any", options.answers)
    table = as_markdown(rows)
    print(table)
    if options.write:
        write_page(PAGE, NAME, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
