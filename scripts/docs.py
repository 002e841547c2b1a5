#!/usr/bin/env python3
"""Write docs/reference/settings.md from `Settings`; with --check only say whether it is current.

Run in the development environment (scripts/check does).
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from maestrale.cli.serve import shown_default, takes_no
from maestrale.config import settings as config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"

INTRODUCTION = """\
# Settings of `maestrale serve`

<!-- Written by scripts/docs from src/maestrale/config/settings.py; don't edit. -->

A setting can come from four places. The first that has it wins:

1. a flag: `--max-model-len 2048`
2. an environment variable: `MAESTRALE_MAX_MODEL_LEN=2048` (set but empty counts as not set)
3. the file named by `--config` or `MAESTRALE_CONFIG`; without one, `maestrale.toml` in the working
   folder, and then your own, `~/.config/maestrale/maestrale.toml` (`$XDG_CONFIG_HOME`):

   ```toml
   [serve]
   max_model_len = 2048
   ```
4. the default

The name is the same in all of them: `--max-model-len`, `MAESTRALE_MAX_MODEL_LEN`,
`max_model_len`. Where vLLM has such a flag, it has vLLM's name.
A wrong value or an unknown name is an error that names it; nothing is ignored. `serve` says which
files it read. Who reaches the server, and where it reports to (keys, `host`, `no_auth`, origins and
hosts, TLS, `ray_address`, `otlp_traces_endpoint`, `log_prompts`), may not come from the
`maestrale.toml` of a folder that one happens to stand in: name that file, or set it in your own.

Settings that are on or off are `--deterministic` and `--no-deterministic` as flags, `true` and
`false` elsewhere. Those that take several values can be repeated as flags or given with commas;
in the file they are lists. Sizes are bytes or `512MiB`, `2GiB`.

`MAESTRALE_DEBUG=1` shows where an error arose (a traceback); it is not a setting of the server.
`MAESTRALE_APT=yes` lets the launcher install what it lacks with apt-get, as root on Debian and
Ubuntu; else it asks, and without a terminal it only says what to install.
"""


def page() -> str:
    parts = [INTRODUCTION]
    fields = config.fields().values()
    for group, members in groupby(fields, key=lambda field: field.metadata["group"]):
        parts.append(f"\n## {group}\n\n| flag | default | what it does |\n|---|---|---|\n")
        parts += [row(field) for field in members]
    return "".join(parts)


def row(field: config.Field) -> str:
    default = shown_default(field) or ("off" if config.field_type(field.name) is bool else "")
    name = config.flag(field.name)
    flag = f"--[no-]{name[2:]}" if takes_no(field) else name
    metavar = f" {field.metadata['metavar']}" if field.metadata["metavar"] else ""
    text = f"{field.metadata['help']}{allowed(field)}".replace("|", "\\|")
    return f"| `{flag}{metavar}` | {default} | {text} |\n"


def allowed(field: config.Field) -> str:
    rules = field.metadata["rules"]
    if rules.get("choices"):
        return f" One of {', '.join(rules['choices'])}."
    low, high = rules.get("minimum"), rules.get("maximum")
    if low is not None and high is not None:
        return f" From {low} to {high}."
    if rules.get("size"):
        low = f"{low >> 20}MiB" if low >= 1 << 20 else f"{low >> 10}KiB"
    return f" At least {low}." if low else ""


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/reference/settings.md is not current: run scripts/docs")
