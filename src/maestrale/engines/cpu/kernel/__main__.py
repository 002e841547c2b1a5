"""`python -m maestrale.engines.cpu.kernel FOLDER`: compile the library into a folder, for an image
(`share/maestrale/kernel` below the environment) or a wheel (beside this file).
"""

from __future__ import annotations

import sys
from pathlib import Path

from maestrale.engines.cpu.kernel.build import build
from maestrale.engines.cpu.kernel.compilers import compiler
from maestrale.errors import MaestraleError


def main() -> None:
    """Prints the library's path."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m maestrale.engines.cpu.kernel FOLDER")
    folder = Path(sys.argv[1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        print(build(folder, compiler(folder, lambda phase, fraction: None), lambda *_: None))
    except MaestraleError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
