"""doctor's findings about the model hub: the token, and whether this account may have the model.

The hub is asked from here, with the token that is here: a token on another machine stays there.
"""

from __future__ import annotations

import re

from maestrale.config.hub import HubSettings
from maestrale.config.settings import Settings
from maestrale.errors import AccessDenied, HubUnreachable, ModelError
from maestrale.machine.doctor.findings import Finding
from maestrale.machine.doctor.gpu import has_nvidia, too_old
from maestrale.machine.facts import MachineFacts


def hub_findings(
    facts: MachineFacts, hub: HubSettings, settings: Settings, local: bool
) -> list[Finding]:
    """Two findings: token, model."""
    engine = "vllm" if has_nvidia(facts) and not too_old(facts) else "cpu"
    model = model_finding(settings, hub, engine, local=local, machine_token=facts.token)
    return [_token(facts, hub, local, asked=not hub.offline), model]


def _token(facts: MachineFacts, hub: HubSettings, local: bool, *, asked: bool) -> Finding:
    from maestrale.models.access import check_token
    from maestrale.models.hub import Hub

    there = "" if local or not facts.token else f" The machine has its own ({facts.token})."
    source = f"In {hub.token_source}"
    if hub.token is None:
        return Finding("token", "ok", f"None here; only gated models need one.{there}")
    if not asked:
        return Finding("token", "ok", f"{source}; not tried, as the hub is off.{there}")
    try:
        name = check_token(Hub(hub))
    except HubUnreachable:
        return Finding("token", "ok", f"{source}; not tried, as the hub can't be reached.{there}")
    except ModelError as error:
        return _refused("token", error)
    return Finding("token", "ok", f"{source}: {hub.endpoint} knows it as {name}'s.{there}")


def model_finding(
    settings: Settings,
    hub: HubSettings,
    engine: str,
    *,
    local: bool = False,
    machine_token: str = "",
) -> Finding:
    """Whether the account here may have the model. `machine_token`: where the machine has one."""
    from maestrale.models.access import check_access
    from maestrale.models.catalog import find_model
    from maestrale.models.file_selection import select_files
    from maestrale.models.hub import DEFAULT_REVISION, Hub
    from maestrale.models.local import local_path
    from maestrale.models.resolve import CPU_ENGINE, remote_source
    from maestrale.models.snapshot import cached_files

    model = settings.model
    known = find_model(model)
    if known is not None and engine == CPU_ENGINE and known.package_file:
        return Finding("model", "ok", f"{known.short_name} comes with maestrale.")
    try:
        if known is None and local and local_path(model) is not None:
            return Finding("model", "ok", f"{model} is on this machine.")
        repo, variant = remote_source(model, known, engine)
    except ModelError as error:
        return _refused("model", error)
    revision = settings.revision
    if local and cached_files(hub.cache, repo, revision, engine, variant) is not None:
        return Finding("model", "ok", f"{repo} was fetched before.")
    if hub.offline:
        return Finding(
            "model",
            "warning",
            f"{repo} was not fetched before, and HF_HUB_OFFLINE forbids asking the hub.",
            "Unset it.",
            "unset HF_HUB_OFFLINE",
        )
    try:
        check_access(
            Hub(hub),
            repo,
            revision or DEFAULT_REVISION,
            lambda found: select_files(repo, found.names, engine, variant).weights,
        )
    except HubUnreachable as error:
        return _refused("model", error, warn=True)
    except AccessDenied as error:
        if hub.token is None and machine_token and not local:
            return Finding(
                "model",
                "ok",
                f"{repo} is gated; the machine has a token ({machine_token}), which is not read "
                "from here, so access was not tried.",
            )
        return _refused("model", error)
    except ModelError as error:
        return _refused("model", error)
    return Finding("model", "ok", f"This account may have {repo}.")


def _refused(check: str, error: ModelError, *, warn: bool = False) -> Finding:
    """The error's message: what happened to its first full stop, then what to do."""
    what, *rest = re.split(r"(?<=[.?])\s+(?=[A-Z])", str(error), maxsplit=1)
    remedy = rest[0] if rest else "Run this again with another --model."
    return Finding(check, "warning" if warn else "problem", what, remedy)
