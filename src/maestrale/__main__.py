"""`python -m maestrale`: the command line."""

try:
    from maestrale.cli.main import main

    main()
except KeyboardInterrupt:  # Ctrl-C during the imports
    raise SystemExit(130) from None
