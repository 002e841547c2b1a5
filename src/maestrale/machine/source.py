"""What a machine installs: from a checkout, a wheel, git, an index, or an image that is there.

    source = Source.parse("git+https://example.org/maestrale.git@v0.1.0")
    staged = source.stage(folder)
    if staged.image:            # nothing to build: the machine pulls this
        ...
    else:                       # the folder is a build context: upload it, then build there
        build_command(staged.context, target="cpu", tag=staged.tag("cpu"))

Whatever is no image becomes one: `deploy/docker/Dockerfile`, the wheel and the lock of its
dependencies make a folder of a few megabytes that `docker build` needs nothing else beside.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maestrale.config.paths import find_uv
from maestrale.errors import BadSource, SourceError

SourceKind = Literal["checkout", "wheel", "git", "image", "published"]
ImageTarget = Literal["cpu", "cuda"]

PROJECT = "maestrale"
WHAT_WORKS = (
    "Works: the folder of a checkout, a .whl file, a git URL "
    "(git+https://HOST/PATH.git@REF), an image with its tag (HOST/NAME:TAG), or a published "
    "version (==0.1.0)."
)
# What the context holds beside `wheels/`; in a wheel these lie in maestrale/deploy/docker.
DOCKER_FILES = ("Dockerfile", "requirements.lock")
GIT_SECONDS = 600.0
WHEEL_SECONDS = 1800.0  # the CPU engine's kernel is compiled for two architectures

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<host>[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_PUBLISHED = re.compile(rf"(?:{PROJECT})?==(?P<version>[0-9][A-Za-z0-9.!+_-]*)")


@dataclass(frozen=True)
class Staged:
    """What goes to the machine: the name of an image, or a folder to build one from."""

    image: str | None = None
    context: Path | None = None
    version: str = ""  # of what the context builds

    def tag(self, target: ImageTarget) -> str:
        """The name for the image: the one given, or that of the build, `maestrale:0.1.0-cpu`."""
        # A local version (0.1.0+dirty) has a sign that no tag may have.
        return self.image or f"{PROJECT}:{self.version.replace('+', '_')}-{target}"


@dataclass(frozen=True)
class Source:
    """Where a machine's maestrale comes from. `value`: a path, URL, reference or version."""

    kind: SourceKind
    value: str

    @classmethod
    def parse(cls, text: str | None) -> Source:
        """What `--source` means; None is whatever this program itself was installed from.

        Raises: BadSource that says what would work; SourceError for None.
        """
        if text is None:
            return installed_from()
        text = text.strip()
        if not text or text.startswith("-"):
            raise BadSource(f"--source {text!r} is no source. {WHAT_WORKS}")
        published = _PUBLISHED.fullmatch(text)
        if published:
            return cls("published", published["version"])
        if is_git_url(text):
            return cls("git", text)
        path = Path(text).expanduser()
        if path.exists():
            return cls._of_path(path)
        image = _IMAGE.fullmatch(text)
        if image and not text.endswith(".whl") and (image["tag"] or image["digest"]):
            return cls("image", text)
        hint = ""
        if image and "/" in text and not text.endswith(".whl"):
            hint = f" If it is an image, give its tag: {text}:latest."
        raise BadSource(f"--source {text}: there is no such file or folder.{hint} {WHAT_WORKS}")

    @classmethod
    def _of_path(cls, path: Path) -> Source:
        if path.is_dir():
            if not is_checkout(path):
                raise BadSource(
                    f"--source {path} is a folder, but no checkout of maestrale: it has no "
                    "pyproject.toml of that name, or no deploy/docker/Dockerfile."
                )
            return cls("checkout", str(path.resolve()))
        if path.suffix == ".whl":
            return cls("wheel", str(path.resolve()))
        raise BadSource(f"--source {path} is no wheel: its name doesn't end in .whl.")

    def stage(self, folder: Path) -> Staged:
        """Put all that the machine needs into the empty `folder`; for an image that is nothing.

        Raises: SourceError when the wheel can't be had or made.
        """
        match self.kind:
            case "image":
                return Staged(image=self.value)
            case "wheel":
                return _context(Path(self.value), folder)
            case "checkout":
                with tempfile.TemporaryDirectory(prefix="maestrale-wheel-") as made:
                    return _context(build_wheel(Path(self.value), Path(made)), folder)
            case "published":
                with tempfile.TemporaryDirectory(prefix="maestrale-wheel-") as made:
                    return _context(_fetch_wheel(self.value, Path(made)), folder)
            case "git":
                with tempfile.TemporaryDirectory(prefix="maestrale-git-") as made:
                    checkout = _clone(self.value, Path(made) / "checkout")
                    return _context(build_wheel(checkout, Path(made) / "wheel"), folder)


def build_command(
    context: Path | str, target: ImageTarget, tag: str, *, arguments: dict[str, str] | None = None
) -> list[str]:
    """The `docker build` for a staged context; works with BuildKit and the builder before it.

    `arguments` are build arguments: PIP_INDEX_URL and such, which stay out of the last stage.
    """
    command = ["docker", "build", "--target", target, "--tag", tag]
    for name, value in (arguments or {}).items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, str(context)]


def is_checkout(folder: Path) -> bool:
    """Whether this is a checkout of maestrale that has what the image is built from."""
    project = folder / "pyproject.toml"
    return (
        project.is_file()
        and re.search(rf'^name = "{PROJECT}"$', project.read_text("utf-8"), re.MULTILINE)
        is not None
        and (folder / "deploy/docker/Dockerfile").is_file()
    )


def is_image(text: str) -> bool:
    """Whether an image could have this name: HOST/NAME:TAG, of which NAME is enough."""
    return _IMAGE.fullmatch(text) is not None


def is_git_url(text: str) -> bool:
    """git+https://..., ssh://..., git@host:path, or https://... (a clone needs no more)."""
    return bool(re.match(r"(git\+)?(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:\S", text))


def installed_from() -> Source:
    """What this very program was installed from: its checkout, wheel, git URL or version.

    Raises: SourceError when that is gone.
    """
    root = Path(__file__).resolve().parents[3]
    if is_checkout(root):
        return Source("checkout", str(root))
    try:
        distribution = importlib.metadata.distribution(PROJECT)
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceError(
            f"It can't be told what this maestrale was installed from: give --source. {WHAT_WORKS}"
        ) from error
    origin = distribution.read_text("direct_url.json")
    if origin is None:
        return Source("published", distribution.version)
    url = json.loads(origin)
    if vcs := url.get("vcs_info"):
        return Source("git", f"git+{url['url']}@{vcs['commit_id']}")
    place = urllib.parse.urlsplit(url["url"])
    path = Path(urllib.request.url2pathname(place.path))
    if place.scheme == "file" and path.exists():
        return Source._of_path(path)
    raise SourceError(
        f"This maestrale was installed from {url['url']}, which is not there any more: give "
        f"--source. {WHAT_WORKS}"
    )


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Make the wheel of a checkout, in an environment of its own. Raises: SourceError."""
    folder.mkdir(parents=True, exist_ok=True)
    uv = find_uv()
    if uv:
        command = [uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(checkout)]
    else:
        command = [*_pip(), "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        command.append(str(checkout))
    _run(command, f"The wheel of {checkout} can't be made", WHEEL_SECONDS)
    return _only_wheel(folder)


def _fetch_wheel(version: str, folder: Path) -> Path:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), f"{PROJECT}=={version}"]
    _run(command, f"{PROJECT} {version} can't be had from the package index", WHEEL_SECONDS)
    return _only_wheel(folder)


def _pip() -> list[str]:
    """pip for this interpreter, or a uv that brings one. Raises: SourceError."""
    has_pip = [sys.executable, "-m", "pip"]
    found = subprocess.run([*has_pip, "--version"], capture_output=True)  # noqa: S603
    if found.returncode == 0:
        return has_pip
    uv = find_uv()
    if uv:
        return [uv, "tool", "run", "pip"]
    raise SourceError(
        f"{sys.executable} has no pip, and there is no uv, to make or fetch the wheel with. "
        "Give a wheel or an image: --source FILE.whl, --source NAME:TAG."
    )


def _clone(url: str, folder: Path) -> Path:
    address, reference = split_reference(url.removeprefix("git+"))
    if not shutil.which("git"):
        raise SourceError(f"{url} is fetched by git, which is not installed here.")
    quiet = ["git", "-c", "advice.detachedHead=false"]
    problem = f"{address} can't be cloned"
    _run([*quiet, "clone", "--quiet", "--", address, str(folder)], problem, GIT_SECONDS)
    if reference:
        problem = f"{address} has no branch, tag or commit {reference}"
        if reference.startswith("-"):
            raise SourceError(f"{problem}.")
        inside = [*quiet, "-C", str(folder), "checkout", "--quiet", reference, "--"]
        _run(inside, problem, GIT_SECONDS)
    if not is_checkout(folder):
        raise SourceError(f"{url} is a repository, but not one of maestrale.")
    return folder


def split_reference(url: str) -> tuple[str, str]:
    """(address, branch or tag or commit): what follows the last @ of the path is the latter."""
    head, at, reference = url.rpartition("@")
    # In https://user@host/path and git@host:path the @ stands before the path.
    if at and ("/" in head.partition("://")[2] or ("://" not in head and ":" in head)):
        return head, reference
    return url, ""


def _context(wheel: Path, folder: Path) -> Staged:
    """The build context: the wheel, and out of it the Dockerfile and the lock."""
    version = _version_of(wheel)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wheels").mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in DOCKER_FILES:
                (folder / name).write_bytes(archive.read(f"{PROJECT}/deploy/docker/{name}"))
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{wheel} can't be read as a wheel: {error}.") from error
    except KeyError as error:
        raise SourceError(
            f"{wheel} has no Dockerfile inside: it is of another project or an older version."
        ) from error
    shutil.copy(wheel, folder / "wheels")
    return Staged(context=folder, version=version)


def _version_of(wheel: Path) -> str:
    name, _, rest = wheel.name.partition("-")
    if name.lower() != PROJECT or rest.count("-") < 3:
        raise SourceError(f"{wheel} is no wheel of {PROJECT}: those are named {PROJECT}-VERSION-….")
    return rest.partition("-")[0]


def _only_wheel(folder: Path) -> Path:
    wheels = sorted(folder.glob(f"{PROJECT}-*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"One wheel was to be in {folder}, but there are {len(wheels)}.")
    return wheels[0]


def _run(command: list[str], problem: str, seconds: float) -> None:
    """Raises: SourceError with the end of what the program said."""
    try:
        # Nobody is there to answer: git and ssh must not ask for a password.
        done = subprocess.run(  # noqa: S603
            ["/usr/bin/env", "GIT_TERMINAL_PROMPT=0", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{problem}: nothing came of it in {seconds:.0f} s.") from error
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise SourceError(f"{problem}:\n{last}")
