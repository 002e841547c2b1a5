"""`maestrale`, but slow clients are given up on within seconds, so that tests can wait for it."""

from __future__ import annotations

from maestrale.api.http.limits import HttpLimits
from maestrale.api.http.protocol import protocol_class
from maestrale.cli.main import main
from maestrale.serve import listening

LIMITS = HttpLimits(
    head_timeout=3.0,
    body_idle_timeout=3.0,
    body_timeout=5.0,
    stall_timeout=3.0,
    write_window=4.0,
    linger=1.0,
)

if __name__ == "__main__":
    setattr(  # noqa: B010 - the name is imported there, not exported
        listening,
        "protocol_class",
        lambda dialects: protocol_class(LIMITS, dialects=dialects),
    )
    main()
