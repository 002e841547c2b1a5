"""Who may import whom (docs/notes/architecture.md). A new module gets a row here, or this fails."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import ROOT

PACKAGE = ROOT / "src" / "maestrale"

# layer → what of maestrale it may import; a layer may always import itself.
# `engines.base` holds types only.
FOUNDATION = {"", "database", "errors", "files", "nvidia", "printable", "processes", "text_files"}
SETTINGS = {"config"}
ALLOWED: dict[str, set[str]] = {
    "": set(),
    "database": {"errors"},
    "usage": {"database"},
    "errors": set(),
    "printable": set(),
    # What reads another server's answers, and what shows them.
    "bounded": set(),
    "console": {"printable"},
    "text_files": set(),
    "files": set(),
    "nvidia": set(),
    "processes": set(),
    "config": FOUNDATION,
    "logs": FOUNDATION | SETTINGS,
    "durable": FOUNDATION | {"logs"},
    "keys": {"errors", "files", "text_files"},
    "models": FOUNDATION | SETTINGS | {"bounded"},
    "engines": FOUNDATION | {"models"},
    "metrics": FOUNDATION | {"chat.answer", "engines.base", "usage"},
    "prompt": FOUNDATION | {"models", "engines.base"},
    "chat": FOUNDATION | SETTINGS | {"prompt", "engines.base", "models"},
    "supervise": FOUNDATION | SETTINGS | {"engines", "models"},
    # A replica owns an engine process, and the engine above it a ledger: the supervisor's.
    "cluster": FOUNDATION | SETTINGS | {"supervise", "engines", "models"},
    "api": FOUNDATION
    | SETTINGS
    | {"chat", "prompt", "engines.base", "models", "logs", "metrics", "keys", "usage", "console"}
    | {"durable"},
    # Where the parts of a running server are put together, and nowhere else.
    "serve": FOUNDATION
    | SETTINGS
    | {"api", "chat", "prompt", "engines", "models", "logs", "metrics", "keys", "usage", "console"}
    | {"supervise", "cluster", "durable"},
    "verify": FOUNDATION | SETTINGS | {"bounded"},
    # The scenarios are those of verify's collection.
    "bench": FOUNDATION | SETTINGS | {"bounded", "verify"},
    "terminal": FOUNDATION | SETTINGS | {"bounded"},
    "machine": FOUNDATION | SETTINGS | {"bounded"},
}
# The chat page's scenarios are those of the collection.
COMPOSES = {"api.operations.scenarios": {"verify.scenarios"}}
EVERYTHING = {"cli", "__main__"}


@functools.cache
def modules() -> dict[str, Path]:
    """Name below `maestrale` (empty for the package itself) → file."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path) -> Iterator[str]:
    """Names below `maestrale` that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            # `from maestrale.engines import base` imports the module engines.base.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            known = modules()
            names = [
                name if name.removeprefix("maestrale.") in known else str(node.module)
                for name in inner
            ]
        else:
            continue
        for name in names:
            if name == "maestrale" or name.startswith("maestrale."):
                yield name.removeprefix("maestrale").removeprefix(".")


def layer_of(name: str) -> str:
    return name.partition(".")[0]


def breaches(name: str, path: Path) -> list[str]:
    layer = layer_of(name)
    if layer in EVERYTHING:
        return []
    allowed = ALLOWED[layer] | COMPOSES.get(name, set()) | {layer}
    return [
        f"{name or 'maestrale'} imports {other}"
        for other in imported(path)
        if other not in allowed and layer_of(other) not in allowed
    ]


@pytest.mark.parametrize("name", modules(), ids=lambda name: name or "maestrale")
def test_imports_follow_the_layers(name: str) -> None:
    assert breaches(name, modules()[name]) == []


def test_a_breach_is_found(tmp_path: Path) -> None:
    module = tmp_path / "loop.py"
    module.write_text("def step():\n    from maestrale import prompt\n")
    assert breaches("engines.loop", module) == ["engines.loop imports prompt"]


def test_types_do_not_open_their_whole_layer(tmp_path: Path) -> None:
    module = tmp_path / "service.py"
    module.write_text("import maestrale.engines.base\nimport maestrale.engines.registry\n")
    assert breaches("chat.service", module) == ["chat.service imports engines.registry"]


DIALECTS = {path.parent.name for path in PACKAGE.glob("api/*/dialect.py")}


def dialect_of(name: str) -> str:
    """The dialect that a module belongs to, or an empty text."""
    layer, _, rest = name.partition(".")
    folder = rest.partition(".")[0]
    return folder if layer == "api" and folder in DIALECTS else ""


def test_a_dialect_is_known_where_it_is_registered_and_nowhere_else() -> None:
    assert "openai" in DIALECTS
    known = {
        (name, dialect_of(other))
        for name, path in modules().items()
        for other in imported(path)
        if dialect_of(other) not in ("", dialect_of(name))
    }
    registered = {("api.dialects", dialect) for dialect in DIALECTS}
    # `render` shows what a chat completion's body becomes.
    assert known == registered | {("cli.render", "openai")}


def test_what_is_below_the_dialects_knows_none_of_their_words() -> None:
    words = ("chatcmpl", "chat.completion", "[DONE]", "response_format", "invalid_request_error")
    below = {"chat", "prompt", "engines", "supervise", "metrics", "errors"}
    speaking = [
        f"{name}: {word}"
        for name, path in modules().items()
        if layer_of(name) in below or (layer_of(name) == "api" and not dialect_of(name))
        for word in words
        if word in path.read_text()
    ]
    assert speaking == [
        # What the page's scenarios have is a body that its script sends.
        "api.operations.scenarios: response_format"
    ]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """What imports itself by way of others, each circle once."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str, follow: dict[str, set[str]], into: list[str]) -> None:
        if name not in seen:
            seen.add(name)
            for other in sorted(follow.get(name, ())):
                visit(other, follow, into)
            into.append(name)

    for name in arrows:
        visit(name, arrows, order)
    back: dict[str, set[str]] = {}
    for name, others in arrows.items():
        for other in others:
            back.setdefault(other, set()).add(name)
    seen.clear()
    found = []
    for name in reversed(order):
        circle: list[str] = []
        visit(name, back, circle)
        if len(circle) > 1:
            found.append(sorted(circle))
    return found


def arrows(between: Callable[[str], str]) -> dict[str, set[str]]:
    """Who imports whom, `TYPE_CHECKING` and imports inside functions included."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        into = found.setdefault(between(name), set())
        into |= {between(other) for other in imported(path) if other in modules()}
    for name, others in found.items():
        others.discard(name)
    return found


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circles(arrows(lambda name: name)) == []


def test_no_folder_imports_itself_by_way_of_others() -> None:
    # The package's own __init__ has the version, which anybody may ask for.
    assert circles(arrows(lambda name: layer_of(name) or "version")) == []


def test_a_circle_is_found() -> None:
    round_ = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert sorted(circles(round_)) == [["a", "b", "c"], ["e", "f"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def reads_environment(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "getenv", "environb")
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_only_the_settings_and_the_command_line_read_the_environment() -> None:
    readers = {name for name, path in modules().items() if reads_environment(path)}
    assert {"config.paths", "config.hub"} <= readers
    # vLLM and Ray take some settings from the environment only: they are set there, not read.
    readers -= {"engines.vllm.environment", "cluster.environment"}
    # CXX names the compiler for whatever compiles: no setting of ours.
    readers -= {"engines.cpu.kernel.compilers"}
    # How systemd, or the server before, passes sockets on: no settings either.
    readers -= {"serve.handover.systemd", "serve.handover.upgrade"}
    assert {layer_of(name) for name in readers} <= {"config", "cli"}
