"""`python -m maestrale`."""

from maestrale.cli.main import main

main()
