"""The reports to keep: HTML for a person, JUnit for CI, JSON for a program."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import jinja2

from maestrale.printable import printable, printable_json
from maestrale.verify.causes import cause_of, cause_of_problem
from maestrale.verify.results import RequestResult, RunResult

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(run: RunResult) -> str:
    """The whole run as JSON, verdict first."""
    data: dict[str, Any] = {
        "verdict": run.verdict,
        "exit_code": run.exit_code,
        "passed": run.passed,
        "failed": run.failed,
        "skipped": run.skips,
        **dataclasses.asdict(run),
    }
    for found, shown in zip(run.requests, data["requests"], strict=True):
        shown["problem_cause"] = cause_of_problem(found.problem) if found.problem else None
        for assertion, entry in zip(found.assertions, shown["assertions"], strict=True):
            entry["cause"] = None if assertion.passed else cause_of(found, assertion)
    return printable_json(json.dumps(data, indent=2, ensure_ascii=False))


def as_junit(run: RunResult) -> str:
    """JUnit XML: a suite for each request, a case for each assertion."""
    root = ElementTree.Element(
        "testsuites",
        name=run.collection,
        tests=str(run.passed + run.failed + run.skips),
        failures=str(run.failed),
        errors=str(int(run.could_not_run is not None)),
        time=f"{run.seconds:.3f}",
    )
    if run.could_not_run is not None:
        case = _suite(root, "verify", 0.0, tests=1, errors=1)
        ElementTree.SubElement(
            ElementTree.SubElement(case, "testcase", classname="verify", name="could run"),
            "error",
            message=_clean(run.could_not_run),
        )
    for result in run.requests:
        _junit_request(root, result)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(
    root: ElementTree.Element, name: str, seconds: float, **counts: int
) -> ElementTree.Element:
    attributes = {key: str(count) for key, count in counts.items()}
    attributes |= {"name": _clean(name), "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(root, "testsuite", attributes)


def _junit_request(root: ElementTree.Element, result: RequestResult) -> None:
    suite = _suite(
        root,
        result.location,
        result.seconds,
        tests=len(result.assertions) + (result.problem is not None) + result.skipped,
        failures=result.failed,
        skipped=result.skips + result.skipped,
    )

    def case(name: str) -> ElementTree.Element:
        return ElementTree.SubElement(
            suite, "testcase", classname=_clean(result.location), name=_clean(name)
        )

    if result.skipped:
        ElementTree.SubElement(case("request"), "skipped", message="skipped by its script")
    if result.problem is not None:
        found = ElementTree.SubElement(case("request"), "failure", message=_clean(result.problem))
        found.text = _clean(cause_of_problem(result.problem) or "")
    for assertion in result.assertions:
        entry = case(assertion.name)
        if assertion.skipped:
            ElementTree.SubElement(entry, "skipped")
        elif assertion.failure is not None:
            failure = assertion.failure
            found = ElementTree.SubElement(
                entry, "failure", type=_clean(failure.name), message=_clean(failure.message)
            )
            found.text = _clean(
                f"expected: {failure.expected}\nwhat came: {failure.actual}\n"
                f"usual cause: {cause_of(result, assertion) or 'not known'}"
            )


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", printable(text))


@dataclasses.dataclass(frozen=True)
class ShownMessage:
    """One message of a conversation, as the HTML report shows it."""

    role: str
    text: str


def conversation(result: RequestResult) -> tuple[list[ShownMessage], str | None]:
    """(the messages sent, the answer's text); empty where the request is no chat."""
    try:
        sent = json.loads(result.sent_body or "")
        turns = [ShownMessage(str(one["role"]), str(one["content"])) for one in sent["messages"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [], None
    return turns, _answer_text(result)


def _answer_text(result: RequestResult) -> str | None:
    try:
        if "text/event-stream" not in result.content_type:
            return str(json.loads(result.body)["choices"][0]["message"]["content"])
        deltas = []
        for line in result.body.splitlines():
            if line.startswith("data:") and "[DONE]" not in line:
                for choice in json.loads(line[5:]).get("choices", [])[:1]:
                    deltas.append((choice.get("delta") or {}).get("content") or "")
        return "".join(deltas)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _shown(value: object) -> object:
    """What the page shows of it: no text from outside may turn the direction of writing."""
    return printable(value) if type(value) is str else value


@cache
def page_template(package: str) -> jinja2.Template:
    """The report's page of a package, whose variables can hold any text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    source = (files(package) / "assets" / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def as_html(run: RunResult) -> str:
    """One self-contained page: the verdict, each check, and the answers as a conversation."""
    return page_template("maestrale.verify").render(
        run=run,
        conversation=conversation,
        cause_of=cause_of,
        cause_of_problem=cause_of_problem,
    )
