"""API keys: the file that holds them, and who a presented key belongs to.

A key is 32 random bytes, so its plain SHA-256 can be stored: a slow hash protects secrets that
can be guessed, and 2^256 can't, at any speed. It would only make each request slow.

`KeyStore` reads the file again when it changes, so `maestrale keys add`, `rotate` and `revoke` need
no restart. They replace the file at once, under a lock on its folder, so two of them at a time lose
nothing and a reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from maestrale.errors import AuthenticationFailed, MaestraleError, SettingsError
from maestrale.files import replace_file
from maestrale.text_files import without_bom

KEY_PREFIX = "sk-maestrale-"
RELOAD_INTERVAL = 1.0  # seconds between two looks at the file
MAX_FILE_BYTES = 8 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHOWN = len(KEY_PREFIX) + 4  # characters of a key that are kept, to recognise it by
_LOGGER = logging.getLogger("maestrale")


LIMITS = tuple(
    f"{what}_per_{window}"
    for what in ("requests", "tokens")
    for window in ("minute", "day", "month")
)
"""What may be limited of a key: the fields' names."""


class ReplacedKey(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What a key was before it was rotated. It is valid `until` then (ISO 8601, UTC)."""

    sha256: str
    prefix: str = ""
    until: str


class Key(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Who may call, and how much. Holds the key's digest, never the key.

    `prefix` is how the key begins, to recognise it by. `created` and `expires` are in ISO 8601,
    UTC. Limits of None are no limits; days and months are those of UTC. `models`: the names of
    those that it may ask; empty: all. `operator`: it may also say which models are loaded, and see
    what all have used. `replaced`: what was handed out under this name before, newest last.
    """

    name: str
    sha256: str
    prefix: str = ""
    created: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    operator: bool = False
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    expires: str = ""
    models: tuple[str, ...] = ()
    replaced: tuple[ReplacedKey, ...] = ()
    first_sha256: str = ""

    @property
    def identity(self) -> str:
        """What stays the same when the key is rotated: the digest that it had first."""
        return self.first_sha256 or self.sha256

    def limit(self, what: str, window: str) -> int | None:
        """How many requests or tokens a minute, a day or a month; None: as many as it likes."""
        found: int | None = getattr(self, f"{what}_per_{window}")
        return found


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    keys: list[Key]


PLAIN_FIELDS = {
    *("name", "sha256", "prefix", "created", "requests_per_minute", "tokens_per_minute"),
}
"""A file with no others is of version 1, which older programs read, too."""


class KeyStore:
    """All keys that are accepted now: those given in the settings, and those of a file.

        store = KeyStore(settings.api_key, path)
        if store.required:
            key = store.authenticate(presented)  # None: unknown

    A file that breaks or vanishes later leaves the keys as they were, with a warning in the log.
    A file that appears later is taken up; from then on keys are required.
    """

    def __init__(
        self,
        given: Iterable[str] = (),
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises: SettingsError when the file is there but can't be used."""
        self._given = [_unnamed(key) for key in given]
        self._path = path
        self._clock = clock
        self._now = now
        self._seen: tuple[int, ...] | None = None
        self._from_file: list[Key] | None = None
        self._looked_at = clock()
        if path is not None and path.exists():
            self._seen = _signature(path)
            self._from_file = read_keys(path)
        self._index()

    @property
    def required(self) -> bool:
        """Whether a request needs a key. A file with no keys left lets nobody in."""
        self._refresh()
        return bool(self._given) or self._from_file is not None

    @property
    def several(self) -> bool:
        """Whether there is more than one key."""
        return len(self._keys) > 1

    def entries(self) -> list[Key] | None:
        """Every key that is accepted now, as a key file holds them; None: none is asked for."""
        return list(self._keys) if self.required else None

    def authenticate(self, presented: bytes) -> Key | None:
        """The entry of this key, or None. Its time tells nothing about which key is near.

        Raises: AuthenticationFailed for one whose time is over.
        """
        self._refresh()
        digest = hashlib.sha256(presented).digest()
        found, end = None, ""
        for known, until, key in self._digests:  # all of them, whichever fits
            if hmac.compare_digest(digest, known):
                found, end = key, until
        if found is not None:
            now = self._now()
            if end and moment_of(end) <= now:
                raise AuthenticationFailed(
                    f"This key of {found.name} was replaced by another one, and was valid until "
                    f"{end}.",
                    code="key_expired",
                )
            if found.expires and moment_of(found.expires) <= now:
                raise AuthenticationFailed(
                    f"The key {found.name} was valid until {found.expires}.", code="key_expired"
                )
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if self._path is None or now - self._looked_at < RELOAD_INTERVAL:
            return
        self._looked_at = now
        seen = _signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        if seen is None:
            _LOGGER.warning("The key file %s is gone; its keys stay as they were.", self._path)
            return
        try:
            self._from_file = read_keys(self._path)
        except SettingsError as error:
            _LOGGER.warning("%s The keys stay as they were.", error)
            return
        self._index()
        _LOGGER.info("%d keys read from %s", len(self._from_file), self._path)

    def _index(self) -> None:
        self._keys = [*self._given, *(self._from_file or ())]
        self._digests = [
            (bytes.fromhex(sha256), until, key)
            for key in self._keys
            for sha256, until in (
                (key.sha256, ""),
                *((each.sha256, each.until) for each in key.replaced),
            )
        ]


def new_key() -> str:
    """A fresh key: 32 random bytes."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def kept_key(path: Path) -> str:
    """The key that is kept as it is in the file at `path`; a fresh one at the first call.

    Raises: SettingsError when the file can't be read or written, or holds something else.
    """
    with _locked(path):
        try:
            if path.exists():
                return _read_kept(path)
            key = new_key()
            replace_file(path, key.encode() + b"\n", mode=0o600, durable=True)
        except OSError as error:
            raise SettingsError(f"The key can't be kept in {path}: {error.strerror}.") from error
    return key


def _read_kept(path: Path) -> str:
    """Raises: OSError, SettingsError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise SettingsError(f"Others may read the key in {path}: run 'chmod 600 {path}'.")
        key = without_bom(file.read(1000)).strip()
    if not re.fullmatch(rb"[!-~]{16,200}", key):
        raise SettingsError(f"{path} holds no key: remove it, and the next start makes one.")
    return key.decode()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises: SettingsError that says what is wrong with it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"The key file {path} can't be read: {error.strerror}.") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(f"Others may write the key file {path}: run 'chmod 600 {path}'.")
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(f"The key file {path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        file_ = msgspec.json.decode(without_bom(raw), type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The key file {path} is broken: {error}. Restore it, or remove it and add the keys "
            "anew with 'maestrale keys add'."
        ) from error
    if file_.version not in (1, 2):
        raise SettingsError(
            f"The key file {path} has version {file_.version}; 1 and 2 are known here."
        )
    for key in file_.keys:
        _check(key, path)
    if len({key.name for key in file_.keys}) < len(file_.keys):
        raise SettingsError(f"The key file {path} has two keys of one name.")
    return file_.keys


def add_key(path: Path, name: str, **terms: Any) -> str:
    """Add a key to the file (made if need be) and return it: it can't be had again.

    `terms` are further fields of `Key`: its limits, what it may, how long.
    Raises: MaestraleError when the name is taken or odd; SettingsError for the file.
    """
    if not _NAME.fullmatch(name):
        raise MaestraleError(
            "A key's name has 1 to 64 letters, digits, '.', '_', '@' or '-', and begins with a "
            "letter or digit."
        )
    secret = new_key()
    key = Key(
        name=name,
        sha256=_digest(secret),
        prefix=secret[:_SHOWN],
        created=spell_moment(time.time()),
        **terms,
    )
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(other.name == name for other in keys):
            raise MaestraleError(
                f"There is a key named {name} already: revoke it first, or choose another name."
            )
        write_keys(path, [*keys, key])
    return secret


def rotate_key(path: Path, name: str, seconds: float) -> tuple[str, str]:
    """Give the key of this name another secret; what it had is valid for so many seconds more.

    The new secret, and until when the old one is valid.
    Raises: MaestraleError when there is none of that name; SettingsError for the file.
    """
    secret, now = new_key(), time.time()
    until = spell_moment(now + seconds)
    with _locked(path, made=False):
        keys = _with_name(path, name)
        old = next(key for key in keys if key.name == name)
        left = [each for each in old.replaced if moment_of(each.until) > now]
        new = msgspec.structs.replace(
            old,
            sha256=_digest(secret),
            prefix=secret[:_SHOWN],
            created=spell_moment(now),
            replaced=(*left, ReplacedKey(sha256=old.sha256, prefix=old.prefix, until=until)),
            first_sha256=old.identity,
        )
        write_keys(path, [new if key is old else key for key in keys])
    return secret, until


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises: MaestraleError when there is none of that name."""
    with _locked(path, made=False):
        write_keys(path, [key for key in _with_name(path, name) if key.name != name])


def moment_of(text: str) -> float:
    """Unix time of a moment in ISO 8601; a date is its beginning, and without a zone it is UTC.

    Raises: ValueError.
    """
    moment = datetime.datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def spell_moment(moment: float) -> str:
    """A Unix time in ISO 8601, UTC, in whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _with_name(path: Path, name: str) -> list[Key]:
    """All keys of the file, one of which has this name. Raises: MaestraleError, SettingsError."""
    keys = read_keys(path)
    if not any(key.name == name for key in keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise MaestraleError(f"There is no key named {name!r} in {path}; there is: {known}.")
    return keys


def _digest(secret: str) -> str:
    # A variable or argument that isn't UTF-8 reaches here with surrogates: give its bytes back.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def _unnamed(secret: str) -> Key:
    """A key from the settings, so the operator's.

    It is known by the start of its digest, which tells nothing of it.
    """
    digest = _digest(secret)
    return Key(name=digest[:8], sha256=digest, operator=True)


def _check(key: Key, path: Path) -> None:
    """Raises: SettingsError."""
    if not _NAME.fullmatch(key.name):
        raise SettingsError(f"The key file {path} has a key with the odd name {key.name[:80]!r}.")
    for digest in (key.sha256, key.identity, *(each.sha256 for each in key.replaced)):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise SettingsError(f"The key file {path} is broken: {key.name} has no SHA-256 digest.")
    if any(getattr(key, name) is not None and getattr(key, name) < 1 for name in LIMITS):
        raise SettingsError(f"The key file {path}: the limits of {key.name} must be 1 or more.")
    for moment in (key.expires, *(each.until for each in key.replaced)):
        try:
            moment_of(moment or "2000-01-01")
        except ValueError as error:
            raise SettingsError(
                f"The key file {path}: {moment[:80]!r} of {key.name} is no moment such as "
                "2030-12-31T00:00:00Z."
            ) from error


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file does; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode


@contextlib.contextmanager
def _locked(path: Path, *, made: bool = True) -> Iterator[None]:
    """Hold the lock on the file's folder, which is made if need be: nothing is left behind.

    Raises: SettingsError; MaestraleError without a file, where none shall be made.
    """
    if not made and not path.exists():
        raise MaestraleError(f"There is no key file {path}.")
    folder = path.absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise SettingsError(f"The folder {folder} can't be used: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_keys(path: Path, keys: list[Key]) -> None:
    """Replace the file as a whole, readable by its owner only. Raises: SettingsError."""
    plain = all(msgspec.to_builtins(key).keys() <= PLAIN_FIELDS for key in keys)
    file = _File(version=1 if plain else 2, keys=keys)
    data = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
    try:
        replace_file(path, data, mode=0o600, durable=True)
    except OSError as error:
        raise SettingsError(f"The key file {path} can't be written: {error.strerror}.") from error
