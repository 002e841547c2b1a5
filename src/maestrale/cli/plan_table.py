"""The plan as tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.table import Table

from maestrale.console import CleanConsole
from maestrale.models.describe import HubDescription
from maestrale.models.fit import USERS_AT, FitPlan, advice

PIPE_WIDTH = 160  # columns where there is no terminal to ask


def show(plan: FitPlan, plans: Mapping[str, FitPlan], described: HubDescription) -> None:
    """Print the account, then what fits for each type of weights, then what could be changed."""
    console = CleanConsole(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    shape = described.shape
    console.print(
        f"{plan.model}: {shape.parameters / 1e9:.2f} billion parameters, context "
        f"{plan.context:,} (from {described.source})"
    )
    console.print(f"on {plan.machine}, engine {plan.engine}, weights as {plan.weight_type}\n")
    console.print(_account(plan))
    console.print(_verdict(plan) + "\n")
    console.print(_types(plan, plans))
    ways = advice(plan, plans)
    if ways:
        console.print("\nFor a longer context:" if plan.fits else "\nWhat would help:")
        for way in ways:
            console.print(f"  - {way}")


def _account(plan: FitPlan) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for term in plan.terms:
        table.add_row(term.name, _gib(term.size), term.formula)
    left = sum(term.size for term in plan.terms)
    table.add_row("left for the KV cache", _gib(left), "")
    one = plan.shape
    per_layer = (
        f"{one.latent} (latent)"
        if one.latent is not None
        else f"2 x {one.kv_heads} heads x {one.head_dim}"
    )
    table.add_row(
        "KV cache for a token",
        f"{plan.kv_bytes_per_token / 1024:,.1f} KiB",
        f"{one.layers} layers x {per_layer} x {plan.kv_element:g} bytes",
    )
    return table


def _verdict(plan: FitPlan) -> str:
    if not plan.fits:
        return "\n[bold]It doesn't fit.[/bold]"
    whole = "the model's whole" if plan.max_context_tokens >= plan.context else "the longest"
    return (
        f"\n[bold]{plan.kv_capacity_tokens:,} tokens fit in the cache; {whole} context is "
        f"{plan.max_context_tokens:,}.[/bold]"
    )


def _types(plan: FitPlan, plans: Mapping[str, FitPlan]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("weights as")
    for title in ("weights", "tokens in cache", "longest context"):
        table.add_column(title, justify="right")
    for tokens in USERS_AT:
        table.add_column(f"users at {tokens // 1024}k", justify="right")
    for name, one in plans.items():
        weights = next(-term.size for term in one.terms if term.name == "weights")
        style = "bold" if name == plan.weight_type else None
        if not one.fits:
            table.add_row(name, _gib(weights), "doesn't fit", "", "", "", "", style=style)
            continue
        users = [_users(one, tokens) for tokens in USERS_AT]
        table.add_row(
            name,
            _gib(weights),
            f"{one.kv_capacity_tokens:,}",
            f"{one.max_context_tokens:,}",
            *users,
            style=style,
        )
    return table


def _users(plan: FitPlan, tokens: int) -> str:
    if tokens > plan.context:
        return "-"
    return f"{int(plan.users_at(tokens)):,}"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):,.2f} GiB"
