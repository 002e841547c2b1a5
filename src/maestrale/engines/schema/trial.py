"""Whether an expression has any text at all: a small grammar of it alone is compiled and tried."""

from __future__ import annotations

import functools
import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

_SIZE = 257


class _Bytes:
    """A vocabulary of single bytes, as LLTokenizer asks for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    tokens = [*(bytes([byte]) for byte in range(256)), b"<|end|>"]
    special_token_ids = [256]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(_Bytes())


@functools.lru_cache(4096)
def has_text(expression: str) -> bool:
    """Whether any text follows a Lark expression, or a `%json` schema.

    Raises: ValueError with what is wrong with it, in words.
    """
    body = (
        f"start: {expression}" if expression.startswith("%json") else f"start: T\nT: {expression}"
    )
    grammar = '%llguidance {"no_forcing": true}\n' + body
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(_tokenizer(), grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        fill_next_token_bitmask(matcher, allocate_token_bitmask(1, _SIZE))
    if not matcher.is_error():
        return True
    reason = matcher.get_error()
    if reason.startswith("NoExtension") or "Unsatisfiable" in reason:
        return False
    known = re.search(r"^error: (.*)$", reason, re.MULTILINE)
    raise ValueError(known.group(1) if known else "it is too large or too complex")
