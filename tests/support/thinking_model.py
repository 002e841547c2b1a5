"""SmolLM2 as a model that thinks: two unused tokens are the tags, and its template opens them.

Its thoughts never end by themselves, so a budget, or the limit of the answer, ends them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewritten_gguf import Tensors, rewritten

TAGS = {"<repo_name>": "<think>", "<reponame>": "</think>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def write_thinking_model(source: Path, target: Path) -> Path:
    """`source` is the bundled model's GGUF file."""

    def change(values: dict[str, Any], tensors: Tensors) -> None:
        tokens = values["tokenizer.ggml.tokens"]
        values["tokenizer.ggml.tokens"] = [TAGS.get(token, token) for token in tokens]
        values["tokenizer.chat_template"] = TEMPLATE

    return rewritten(source, target, change)
