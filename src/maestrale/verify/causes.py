"""What usually causes a failed check. A small table, read from the top; the first match counts."""

from __future__ import annotations

import re

from maestrale.verify.results import RequestResult
from maestrale.verify.sandbox import Assertion

# pattern over "request | check | message" → cause
_OF_CHECKS: tuple[tuple[str, str], ...] = (
    (
        r"(?i)wrong key \|.*status is 401",
        "The server takes any key, or asks for none. If it should ask for none, leave the key "
        "empty; otherwise anyone can use it.",
    ),
    (
        r"(?i)unknown model",
        "The server answers for any model name. Servers that hold one model often ignore the "
        "name; a client with a typing error won't notice.",
    ),
    (
        r"(?i)too long",
        "The server cuts off long prompts in silence, or fails on them, instead of saying how "
        "long they may be.",
    ),
    (
        r"(?i)same seed gives",
        "The server doesn't know Mistral's 'random_seed', or its answers change with what else "
        "it computes at that moment.",
    ),
    (
        r"(?i)model to ask is among them",
        "The 'model' variable names a model that this server doesn't list.",
    ),
    (
        r"(?i)no markers of a chat template",
        "The server uses a chat template that is not the model's, or doesn't stop at the model's "
        "end-of-turn token. Look at the exact prompt: 'maestrale render'.",
    ),
    (
        r"(?i)it ends by itself",
        "The model ran on until max_tokens: a wrong chat template or a missing stop token; with "
        "JSON, a grammar that lets whitespace or strings go on for ever.",
    ),
    (
        r"(?i)made of words|in English",
        "Wrong or damaged weights, a wrong tokenizer, or a wrong chat template: the model does "
        "not see what was asked.",
    ),
    (
        r"(?i)sense: JSON whose",
        "The grammar leads the model where it would not go, say by allowing no line break after "
        "'{'; or wrong or damaged weights.",
    ),
    (
        r"(?i)\| sense: ",
        "The answer is off the subject: a wrong chat template, damaged or wrong weights, or "
        "earlier messages that don't reach the model.",
    ),
    (r"(?i)usage", "The server counts tokens wrongly, or leaves out 'usage'."),
    (r"(?i)finish_reason", "The server gives a finish_reason that clients don't know, or none."),
    (
        r"(?i)nothing but JSON|valid against its schema|exactly the keys",
        "response_format is ignored, or does not bind the model while it writes.",
    ),
    (
        r"(?i)\| stream:",
        "The stream is not what clients expect, was cut off, or a proxy between collects it "
        "before passing it on.",
    ),
    (
        r"(?i)got 401|got 403",
        "The server asks for a key: give it with --api-key.",
    ),
    (r"(?i)got 404", "The route or the model is unknown there: look at the URL and the model."),
    (r"(?i)got 429", "Too many requests for this key or server: try again later."),
    (r"(?i)got 5\d\d", "The server failed: its own log says why."),
    (
        r"(?i)error that clients can read",
        "The error has another shape than OpenAI's 'error: {message, type, …}', so clients can't "
        "show it.",
    ),
    (r"(?i)shape of", "A field that clients rely on is missing or of another type."),
    (r"(?i)status is 4", "The server accepts what it should refuse, or refuses it with a 5xx."),
)

_OF_PROBLEMS: tuple[tuple[str, str], ...] = (
    (r"no connection", "Nothing listens there, or a firewall is between: is the server running?"),
    (
        r"within \d",
        "The server hangs or is overloaded. If it is only slow, give it longer: --timeout.",
    ),
    (r"cut off|broke", "The server, or a proxy between, ended the connection: look at its log."),
    (r"no end", "The server never ends its answer."),
    (r"script broke off", "The script expected another answer; see the checks beside it."),
)


def cause_of(result: RequestResult, assertion: Assertion) -> str | None:
    """What usually makes this check fail, or None if the table doesn't know."""
    message = assertion.failure.message if assertion.failure else ""
    if "text/html" in result.content_type:
        return "The server answers with a web page: the URL is probably not that of an API."
    return _look_up(_OF_CHECKS, f"{result.name} | {assertion.name} | {message}")


def cause_of_problem(problem: str) -> str | None:
    """What usually keeps an answer from coming, or None if the table doesn't know."""
    return _look_up(_OF_PROBLEMS, problem)


def _look_up(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((cause for pattern, cause in table if re.search(pattern, text)), None)
