"""Where measurements go: progress to stderr, a table into its place on a page."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def say(text: str) -> None:
    """Tell how far it is, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def write_page(page: Path, name: str, table: str) -> None:
    """Put `table` between the page's comments `name` and `/name`, in the place of the last one."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}")
