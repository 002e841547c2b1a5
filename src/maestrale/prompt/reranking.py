"""A reranker's prompt: a text with places for the query and a document.

A GGUF file has it as llama.cpp's converter writes it: a chat template called rerank, which is no
Jinja but has `{query}` and `{document}` in it. Where a model brings none, it is Qwen3-Reranker's,
as its model card has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from maestrale.errors import ModelError

RERANK_TEMPLATE = "rerank"
QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that "
    "answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_PLACE = re.compile(r"\{(query|document)\}")


def check_template(template: str) -> str:
    """The template. Raises: ModelError where it has no place for the query or the document."""
    places = _PLACE.findall(template)
    if sorted(places) != ["document", "query"]:
        raise ModelError(
            "The model's template for reranking (tokenizer.chat_template.rerank) must have "
            "{query} and {document} in it, once each, as llama.cpp's have. Take another file of "
            "the model, or convert it anew."
        )
    return template


def filled(template: str, texts: Mapping[str, str]) -> str:
    """The prompt. What looks like a place in a text stays text."""
    return _PLACE.sub(lambda place: texts[place[1]], template)
