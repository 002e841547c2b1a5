"""Every failure that a person or a client can meet, with its HTTP status beside it.

MaestraleError                     what the command line prints as one clear message
├── SettingsError                  a flag, variable or maestrale.toml entry is wrong
├── ModelError                     the model can't be found, read or converted
│   ├── AccessDenied               the hub doesn't give the model to this account
│   ├── ModelDoesNotFit            the model, or the context asked for, is larger than memory
│   └── HubUnreachable             the hub can't be reached, or doesn't answer properly
├── ConstraintError                a JSON schema, regex or grammar can't be compiled in bounds
├── CannotVerify                   `verify` can't reach a verdict: no server, or no collection
├── CannotBench                    `bench` can't measure: no server, or a workload it can't read
├── MachineError                   a machine can't be examined or set up
│   ├── NoSshClient                this machine has no OpenSSH client
│   ├── TargetUnreachable          no answer: name unknown, refused, timed out, connection lost
│   ├── HostKeyRefused             the host's key is unknown here, or another than before
│   ├── LoginRefused               the host takes none of the keys, or not this user
│   ├── NoSudo                     the user may not become root without typing a password
│   ├── TargetUnusable             logged in, but there is no POSIX shell that works
│   ├── TargetTimeout              a command on the machine took too long
│   ├── SetupError                 a machine can't be set up
│   │   ├── SetupRefused           something there is in the way; nothing was changed
│   │   ├── UnsupportedMachine     its distribution, processor or kind is not one of ours
│   │   ├── GpuTooOld              the image's CUDA has nothing for this GPU
│   │   ├── SecureBootOn           the kernel would refuse the driver's module
│   │   ├── PackagesLocked         another program installs packages, and goes on doing so
│   │   ├── DiskFull               too little room on the machine
│   │   ├── NoNetwork              a package repository can't be reached from the machine
│   │   ├── RepositoryRefused      not signed, or by another key than NVIDIA's
│   │   ├── PackagesBroken         apt or dpkg can't do what is asked
│   │   └── ProofFailed            all is installed, and yet no container works
│   └── CloudError                 a cloud doesn't give, or didn't give, the machine asked for
│       ├── NoSkyPilot             SkyPilot's environment can't be made
│       ├── NoCredentials          the cloud doesn't accept this account
│       ├── NoSuchOffer            no cloud sells such a machine
│       ├── NoCapacity             it is sold, but none is free
│       ├── QuotaExceeded          the account may not have it
│       ├── CloudUnreachable       no answer from the cloud
│       ├── CloudRefused           any other refusal, in the cloud's words
│       └── HalfMade               the machine is there, and costs, but doesn't serve yet
├── DatabaseUnusable               a file of SQLite can't be opened, read or written
├── SourceError                    what a machine is to install can't be had or made
│   └── BadSource                  --source names nothing that could be (a SettingsError too)
├── ServiceError                   systemd, or the unit that is asked for, is not as it must be
├── EngineError                    the engine can't start, or stopped working
│   ├── NoMemoryLeft               what is free doesn't hold the least it needs
│   ├── EngineDied                 the engine process is gone; requests may be replayed
│   └── ReplayMismatch             a replay gave other tokens than those already sent
└── ApiError                       an answer to an HTTP request
    ├── InvalidRequest         400
    │   ├── UnsupportedParameter   400  unsupported_parameter
    │   └── ContextLengthExceeded  400  context_length_exceeded
    ├── AuthenticationFailed   401  invalid_api_key
    ├── PermissionDenied       403
    ├── NotFound               404
    │   └── ModelNotFound          404  model_not_found
    ├── MethodNotAllowed       405
    ├── Conflict               409
    ├── RequestTimeout         408
    ├── IdempotencyConflict    409
    ├── CannotResume           410
    ├── PayloadTooLarge        413
    ├── UnsupportedMediaType   415
    ├── HeadersTooLarge        431
    ├── RateLimited            429  Retry-After
    ├── ServerFailure          500
    └── Unavailable            503  Retry-After
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self


class MaestraleError(Exception):
    """A failure with a message meant for a person: what happened, why, what to do."""


class SettingsError(MaestraleError):
    """A setting is missing, malformed or contradicts another."""


class ModelError(MaestraleError):
    """The model can't be found, read, converted or is of an unknown kind."""


class AccessDenied(ModelError):
    """The hub doesn't give the model to this account: no token, a wrong one, terms not accepted."""


class ModelDoesNotFit(ModelError):
    """The model, or the context asked for, is larger than the memory it must fit in."""


class HubUnreachable(ModelError):
    """The model hub can't be reached, is overloaded, or is no hub at all."""


class ConstraintError(MaestraleError):
    """A JSON schema, regex or grammar is malformed, unsupported, or too costly to compile."""


class CannotVerify(MaestraleError):
    """`maestrale verify` can't reach a verdict: no server, no collection, or an unsupported script.

    Never a pass and never a fail: the command ends with exit code 2.
    """


class CannotBench(MaestraleError):
    """`maestrale bench` can't measure: no server that answers, or a workload that can't be read."""


class DatabaseUnusable(MaestraleError):
    """A file of SQLite can't be opened, read or written; the message is the bare reason."""


class SourceError(MaestraleError):
    """What a machine is to install (`--source`) can't be understood, had or made."""


class BadSource(SourceError, SettingsError):
    """`--source` names nothing that a machine could install: it was called wrongly."""


class ServiceError(MaestraleError):
    """`maestrale service` can't do it: no systemd, not root, or the name is taken."""


class CannotChat(MaestraleError):
    """`maestrale chat` can't go on as asked: no server, no key, a command that makes no sense."""


class MachineError(MaestraleError):
    """A machine can't be examined, set up or made."""


class NoSshClient(MachineError):
    """This machine has no OpenSSH client."""


class TargetUnreachable(MachineError):
    """The host can't be reached: its name is unknown, it refuses, is silent, or was lost."""


class HostKeyRefused(MachineError):
    """The host's key is not known here, or is another than the one known."""


class LoginRefused(MachineError):
    """The host takes none of the keys offered, or doesn't know the user."""


class NoSudo(MachineError):
    """The user of a machine may not become root without typing a password."""


class TargetUnusable(MachineError):
    """The login works, but there is no POSIX shell that runs commands."""


class TargetTimeout(MachineError):
    """A command on a machine took too long. `stdout` is what it had written until then."""

    def __init__(self, message: str, *, stdout: str = "") -> None:
        super().__init__(message)
        self.stdout = stdout


class SetupError(MachineError):
    """A machine can't be set up. What was done stays; the next run goes on from there."""


class SetupRefused(SetupError):
    """Something on the machine is in the way. Nothing was changed."""


class UnsupportedMachine(SetupRefused):
    """The distribution, processor or kind of machine is none that set-up knows."""


class GpuTooOld(SetupRefused):
    """The image's CUDA, or the driver's branch, has nothing for this GPU."""


class SecureBootOn(SetupRefused):
    """The kernel would refuse the driver's module, which nobody signed."""


class PackagesLocked(SetupError):
    """Another program is installing packages on the machine, and doesn't end."""


class DiskFull(SetupError):
    """The machine has too little room."""


class NoNetwork(SetupError):
    """A package repository can't be reached from the machine."""


class RepositoryRefused(SetupError):
    """A repository is not signed, or by another key than the one expected."""


class PackagesBroken(SetupError):
    """apt or dpkg can't do what is asked of it."""


class ProofFailed(SetupError):
    """All is installed, and yet a container doesn't work as it should."""


class CloudError(MachineError):
    """A cloud doesn't give, or didn't give, the machine that was asked for."""


class NoSkyPilot(CloudError):
    """SkyPilot's own environment can't be made or used."""


class NoCredentials(CloudError):
    """There are no credentials for the cloud, or it doesn't accept them."""


class NoSuchOffer(CloudError):
    """No cloud, or not the one named, sells such a machine."""


class NoCapacity(CloudError):
    """The machine is sold, but none is free right now."""


class QuotaExceeded(CloudError):
    """The account's quota doesn't allow the machine."""


class CloudUnreachable(CloudError):
    """The cloud, or SkyPilot's catalogue, can't be reached."""


class CloudRefused(CloudError):
    """The cloud, or SkyPilot, refuses for another reason; the message has its words."""


class HalfMade(CloudError):
    """The machine is there and costs money, but doesn't serve yet: the message says what to do."""


class EngineError(MaestraleError):
    """The engine can't start, or stopped working."""


class NoMemoryLeft(EngineError):
    """What is free can't hold the least that a model needs beside its weights."""


class EngineDied(EngineError):
    """The engine process is gone. Requests in flight may be replayed."""


class ReplayMismatch(EngineError):
    """A replayed request gave other tokens than those already sent to the client."""


class Location(tuple[str | int, ...]):
    """Where in a request something is: keys and indexes from its top.

    In the words of the neutral request (chat/options.py), such as `Location("tools", 1,
    "parameters")`. What a client calls it is its dialect's to say.
    """

    __slots__ = ()

    def __new__(cls, *steps: str | int) -> Self:
        return super().__new__(cls, steps)

    def at(self, *steps: str | int) -> Self:
        """A place inside this one."""
        return type(self)(*self, *steps)

    def __str__(self) -> str:
        """As in `messages[2].content`."""
        text = ""
        for step in self:
            if isinstance(step, int) or step == ANY:
                text += f"[{step}]"
            else:
                text += f".{step}" if text else step
        return text


class Sent(Location):
    """A place in the body that the client sent, in that body's own words."""

    __slots__ = ()


ANY = "..."
"""A step of a place: some key or index that is not known."""


class ApiError(MaestraleError):
    """An error answered over HTTP, in the words of the dialect that was asked.

    `at` is the place at fault. `code` is what is counted, logged and, in most dialects, told.
    `status` is HTTP's own; a dialect may have another. `retry_after` is in whole seconds.
    """

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        *message: str | Location,
        at: Location | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """`message` is text, with the places that it names, which a dialect spells."""
        super().__init__("".join(_neutral(part) for part in message))
        self.at = at
        self.code = code if code is not None else self.default_code
        self.retry_after = retry_after
        self._parts = message

    @property
    def message(self) -> str:
        """In neutral words."""
        return str(self)

    def told(self, name: Callable[[Location], str]) -> str:
        """The message, with each location as `name` calls it."""
        return "".join(
            f"'{name(part)}'" if isinstance(part, Location) else part for part in self._parts
        )


def _neutral(part: str | Location) -> str:
    return f"'{part}'" if isinstance(part, Location) else part


class InvalidRequest(ApiError):
    status = 400
    default_code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    default_code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    default_code = "context_length_exceeded"


class AuthenticationFailed(ApiError):
    status = 401
    default_code = "invalid_api_key"


class PermissionDenied(ApiError):
    status = 403
    default_code = "permission_denied"


class NotFound(ApiError):
    status = 404
    default_code = "not_found"


class ModelNotFound(NotFound):
    default_code = "model_not_found"


class MethodNotAllowed(ApiError):
    """`allow` lists the methods that the path takes, as the Allow header does."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class Conflict(ApiError):
    """What is asked for contradicts what is going on."""

    status = 409
    default_code = "conflict"


class RequestTimeout(ApiError):
    status = 408
    default_code = "request_timeout"


class IdempotencyConflict(ApiError):
    """The Idempotency-Key was used for another request."""

    status = 409
    default_code = "idempotency_key_reused"


class CannotResume(ApiError):
    """The answer can't be made again as it was begun."""

    status = 410
    default_code = "cannot_resume"


class PayloadTooLarge(ApiError):
    status = 413
    default_code = "payload_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    default_code = "unsupported_media_type"


class HeadersTooLarge(ApiError):
    status = 431
    default_code = "headers_too_large"


class RateLimited(ApiError):
    status = 429
    default_code = "rate_limit_exceeded"


class ServerFailure(ApiError):
    status = 500
    default_code = "internal_error"


class Unavailable(ApiError):
    """Starting, draining, queue full, or the engine failed for good: come back later."""

    status = 503
    default_code = "unavailable"


MAX_QUOTED = 100  # characters of a client's text repeated in an error


def quoted(text: str) -> str:
    """A client's own text, short enough to be repeated to it."""
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…"
