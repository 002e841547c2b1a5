"""`python -m maestrale`: the command line."""

try:
    from maestrale.cli.process import end_at_once_on_ctrl_c

    end_at_once_on_ctrl_c()
    from maestrale.cli.main import main

    main()
except KeyboardInterrupt:  # before that line
    raise SystemExit(130) from None
except ImportError as error:  # of what the command line itself needs
    from maestrale.cli.failures import explained

    if not (meaning := explained(error)):
        raise
    raise SystemExit(f"maestrale: {meaning}") from None
