"""What the scripted engine says: to a prompt with these words that; the first pair that fits.

The answers of a clever model, so that what a client makes of them can be shown.
"""

from __future__ import annotations

import json
from typing import Any

MODEL = "maestrale-test"
SAID = "Hello from the script: how are you?"
SECRET = "a-blue-lighthouse"  # what only the file says, which agents are asked to read
FOUND = "The file speaks of a lighthouse."
SUNNY = "It is 21 degrees in Lyon."


def call(name: str, /, **arguments: Any) -> str:
    """A call of a tool, as a model of Hermes' format writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


JOKE = json.dumps({"setup": "Why did the cat sit?", "punchline": "It was tired."})
PERSON = json.dumps({"name": "Ada", "age": 36})


def replies(note: str) -> list[tuple[str, str]]:
    """All of them. `note`: the path of the file that agents are asked to read."""
    return [
        # Agents on the command line, each with its own tool for files.
        (SECRET, FOUND),
        ("Read note.txt with Read.", call("Read", file_path=note)),
        ("Read note.txt with exec_command.", call("exec_command", cmd=f"cat {note}")),
        ("Read note.txt with read.", call("read", filePath=note)),
        ("Read note.txt with read_file.", call("read_file", file_path=note)),
        # A tool, called once and answered: frameworks.
        ("21 degrees", SUNNY),
        ("What is the weather in Lyon?", call("get_weather", city="Lyon")),
        ("Extract: Ada is 36.", PERSON),
        ("Call the result: Ada is 36.", call("final_result", name="Ada", age=36)),
        ("Call json: Ada is 36.", call("json", name="Ada", age=36)),
        ("Call Person: Ada is 36.", call("Person", name="Ada", age=36)),
        ("Hand this over.", call("transfer_to_forecaster")),
        # The suite of langchain-tests.
        ("It's sunny.", "It is sunny in San Francisco."),
        ("San Francisco, CA", call("get_weather", location="San Francisco, CA")),
        ("magic_function(3)", call("magic_function", input=3)),
        ("magic_function_no_args()", call("magic_function_no_args")),
        ("generate a Pirate greeting", call("greeting_generator", answer_style="pirate")),
        (
            "你好啊集团",
            call("unicode_customer", customer_name="你好啊集团", description="technology"),
        ),
        (
            "こんにちは株式会社",
            call("unicode_customer", customer_name="こんにちは株式会社", description="it"),
        ),
        ("joke about cats", JOKE),
    ]
