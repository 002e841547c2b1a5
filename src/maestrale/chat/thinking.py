"""How a request's wish for thoughts is met by its model: by its template, or by a grammar.

A template has switches of its own, which are variables that it reads. Where it has none, thoughts
are left out, or ended after so many tokens, by what decoding is constrained to.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from maestrale.chat.options import CONSTRAINT, REASONING, TOOLS, Options, Reasoning
from maestrale.engines.base import Constraint
from maestrale.errors import InvalidRequest, Location, UnsupportedParameter, quoted
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.jinja import TemplateReads
from maestrale.prompt.reasoning.base import ANSWER, ANSWERED, CONTENT, TEXT, ReasoningFormat
from maestrale.prompt.tools.base import Rules, ToolFormat
from maestrale.prompt.tools.grammar import constrains, tool_constraint, tool_rules

VARIABLES = Location("template_variables")
SWITCHES: Mapping[str, type] = {
    "enable_thinking": bool,
    "thinking": bool,
    "reasoning_effort": str,
    "thinking_budget": int,
    "low_effort": bool,
    "clear_thinking": bool,
    "preserve_thinking": bool,
    "truncate_history_thinking": bool,
}
"""What a request may tell a template, where the template reads it; all of it is harmless."""
MAX_WORD_CHARS = 16
ON_OFF = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"
# Words that not all templates know, and the nearest that all do.
_NEAREST = {"minimal": "low", "xhigh": "high", "max": "high"}

Variables = tuple[tuple[str, bool | int | str], ...]


class ThinkingPlan(Struct, frozen=True, kw_only=True):
    """What is done for one request.

    `variables` go to the chat template. `budget`: the most tokens of a thought, held by a grammar;
    0: there is none, None: no bound. `form` None: the model isn't known to think.
    """

    form: ReasoningFormat | None = None
    variables: Variables = ()
    budget: int | None = None


def plan(encoder: PromptEncoder, options: Options) -> ThinkingPlan:
    """How this model meets the request. Raises: UnsupportedParameter, InvalidRequest."""
    asked, form, reads = options.reasoning, encoder.reasoning, encoder.reads
    variables = dict(options.template_variables)
    check_variables(options.template_variables, reads)
    switched = _switch(variables, asked, reads)
    if form is None:  # a template may have a switch all the same
        if asked.wanted and not (asked.optional or (switched and not asked.budget)):
            raise UnsupportedParameter(
                *(REASONING, " is not supported by this model: it has no reasoning mode."),
                at=REASONING,
            )
        return ThinkingPlan(variables=tuple(variables.items()))
    budget = asked.budget
    if asked.enabled is False and not switched:
        budget = 0
    if budget and not form.keeps_budgets:
        at = REASONING.at("budget")
        raise UnsupportedParameter(
            at,
            " is not supported by this model: the end of its thoughts is no token of its own, so "
            "it can't be forced.",
            at=at,
        )
    return ThinkingPlan(form=form, variables=tuple(variables.items()), budget=budget)


def check_variables(variables: Variables, reads: TemplateReads) -> None:
    """Raises: UnsupportedParameter, InvalidRequest naming the variable."""
    for name, value in variables:
        at = VARIABLES.at(quoted(name))
        kind = SWITCHES.get(name)
        if kind is None or (name not in reads.variables and value is not False):
            known = sorted(SWITCHES.keys() & reads.variables)
            there = f"of its variables {', '.join(known)} can be set" if known else "it has none"
            raise UnsupportedParameter(
                f"'{quoted(name)}' is no variable of this model's chat template that a request may "
                f"set; {there}.",
                at=at,
            )
        fits = type(value) is kind and (kind is not str or len(str(value)) <= MAX_WORD_CHARS)
        if not fits:
            what = {bool: "true or false", int: "a whole number", str: "one word"}[kind]
            raise InvalidRequest(f"'{name}' must be {what}.", at=at)


def _switch(variables: dict[str, bool | int | str], asked: Reasoning, reads: TemplateReads) -> bool:
    """Tell the template what is asked for; whether it has a switch for on and off."""
    switches = [name for name in ON_OFF if name in reads.variables]
    on = True if asked.enabled is None and asked.wanted else asked.enabled
    if on is not None:
        for name in switches:
            variables.setdefault(name, on)
    effort = "none" if asked.enabled is False else asked.effort
    if EFFORT not in reads.variables or effort is None:
        return bool(switches)
    if effort not in reads.words:
        effort = _NEAREST.get(effort, effort)
    if effort != "none" or "none" in reads.words:
        variables.setdefault(EFFORT, effort)
        return True
    return bool(switches)


def constraint_of(
    thinking: ThinkingPlan, tool_format: ToolFormat | None, options: Options, *, opened: bool
) -> Constraint | None:
    """What decoding is constrained to: a thought first, if there may be one, then what the answer
    or its calls are held to. `opened`: the prompt began the thought. None: nothing is.

    Raises: InvalidRequest.
    """
    form, use, asked = thinking.form, options.tools, options.constraint
    if form is None:
        if use is None or tool_format is None:
            return asked
        return tool_constraint(tool_format, use, asked)
    held = asked is not None or (use is not None and constrains(use, asked))
    if not held and thinking.budget is None:
        return None
    rules = Rules(f"{ANSWERED}: {CONTENT}")
    if use is not None and tool_format is not None:
        rules = tool_rules(tool_format, use, asked)
    start = form.start(opened=opened, budget=thinking.budget)
    lines = [start, rules.text]
    nested: tuple[tuple[str, Constraint], ...] = ()
    if CONTENT in rules.text:
        lines.append(form.content())
        if asked is None:
            lines.append(f"{ANSWER}: ANSWER_TEXT\nANSWER_TEXT: {TEXT}")
        else:
            nested = ((ANSWER, asked),)
    return Constraint("grammar", "\n".join(lines), rules.schemas, nested)


def constrained_by(options: Options, thinking: ThinkingPlan) -> Location:
    """What an answer's constraint comes of, for errors."""
    if options.constraint is not None:
        return CONSTRAINT
    if options.tools is not None and constrains(options.tools, None):
        return TOOLS
    return REASONING if thinking.budget is not None else CONSTRAINT
