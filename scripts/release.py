"""Build wheel, source package and images, and try each as a new user would. See scripts/release."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from maestrale.errors import MaestraleError
from maestrale.machine.source import Source, build_command
from scripts import versions

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"cpu": 700_000_000}  # bytes of an image
START_SECONDS = 300.0
GIT = ("git", "-C", str(ROOT))
# What the build of an image may be told of the package index.
BUILD_ARGUMENTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
# Settings of the caller that would let a check see more than a new user has.
PRIVATE = re.compile(r"MAESTRALE_|PYTHON(PATH|HOME|SAFEPATH|PYCACHEPREFIX)|VIRTUAL_ENV|XDG_")


class ReleaseFailed(Exception):
    """A message for the terminal."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="'bump VERSION', or 'context DIR': only stage a build context"
    )
    parser.add_argument("--tag", action="store_true", help="also make git's tag of this version")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--images", default="cpu", help="cpu, cuda, or both with a comma [cpu]")
    parser.add_argument("--base", help="base image, by digest say, in place of the Dockerfile's")
    parser.add_argument("--network", help="network of docker build: host, behind a local proxy")
    parser.add_argument("--certificates", type=Path, help="CA bundle for the build (PEM)")
    parser.add_argument("--wheelhouse", type=Path, help="wheels that go before the index's")
    options = parser.parse_args()
    try:
        match options.words:
            case []:
                release(options)
            case ["context", folder]:
                stage(Path(folder), options)
            case ["bump", version]:
                for name in versions.bump(version, datetime.now(UTC).date()):
                    print(name)
            case _:
                parser.error("either no words, or: bump VERSION, or: context DIR")
    except (ReleaseFailed, MaestraleError, versions.BadVersion) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def release(options: argparse.Namespace) -> None:
    images = [name for name in options.images.split(",") if name]
    if unknown := set(images) - {"cpu", "cuda"}:
        raise ReleaseFailed(f"there is no image {', '.join(unknown)}: cpu and cuda are known")
    if images and not shutil.which("docker"):
        raise ReleaseFailed("docker is not installed; --images '' leaves the images out")
    version = versions.current()
    if options.tag:
        check_releasable(version)
    say(f"building wheel and source package of {version}")
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("maestrale-*"):
        old.unlink()
    # The wheel is built from the source package, so that one is complete.
    run([tool("uv"), "build", "--out-dir", str(options.out), str(ROOT)])
    (wheel,) = options.out.glob("maestrale-*.whl")
    (source,) = options.out.glob("maestrale-*.tar.gz")
    rows = []
    for artifact, verify in ((wheel, True), (source, False)):
        say(f"installing {artifact.name} into an empty environment")
        try_package(artifact, verify)
        rows.append((artifact.name, artifact.stat().st_size, "installed, served, answered"))
    if images:
        with tempfile.TemporaryDirectory(prefix="maestrale-release-") as folder:
            staged = Path(folder, "context")
            version = stage(staged, options, wheel)
            for target in images:
                rows.append(image(target, staged, version, options))
    if options.tag:
        message = f"maestrale {version}\n\n{versions.notes(version)}"
        run([*GIT, "tag", "--annotate", "--cleanup=whitespace", f"v{version}", "-m", message])
        say(f"tagged v{version}; 'git push origin v{version}' publishes it")
    print()
    for name, size, what in rows:
        print(f"{name:44} {size / 1e6:8.1f} MB  {what}")


def check_releasable(version: str) -> None:
    """Raises: ReleaseFailed, or BadVersion, where a tag would name something else than it says."""
    versions.notes(version)
    if stale := versions.stale_examples():
        raise ReleaseFailed("these name another version:\n" + "\n".join(stale))
    if changed := run([*GIT, "status", "--porcelain"]):
        raise ReleaseFailed(f"the checkout has changes that are not committed:\n{changed}")
    if run([*GIT, "tag", "--list", f"v{version}"]):
        raise ReleaseFailed(f"v{version} is tagged already: 'scripts/release bump' counts up")


def stage(folder: Path, options: argparse.Namespace, wheel: Path | None = None) -> str:
    """Everything that `docker build` needs. Returns the version."""
    staged = Source.parse(str(wheel or ROOT)).stage(folder)
    if options.certificates:
        shutil.copy(options.certificates, folder / "ca-certificates.crt")
    if options.wheelhouse:
        shutil.copytree(options.wheelhouse, folder / "wheelhouse")
    say(f"{folder} is staged")
    return staged.version


def try_package(artifact: Path, verify: bool) -> None:
    """Install it as pip would, outside of the checkout; serve, ask, and look at the pages."""
    with tempfile.TemporaryDirectory(prefix="maestrale-release-") as folder:
        environment, home = Path(folder, "venv"), Path(folder, "home")
        home.mkdir()
        # With pip, as a new user has it: the bundled model is fetched by it.
        run([tool("uv"), "venv", "--quiet", "--seed", "--python", sys.executable, str(environment)])
        install = [tool("uv"), "pip", "install", "--quiet", "--python", str(environment)]
        # The versions that were tested; which packages are needed, its own metadata says.
        held = Path(folder, "held.txt")
        lock = (ROOT / "locks/run.lock").read_text()
        held.write_text("\n".join(re.findall(r"^[a-z0-9][^\\\n]*", lock, re.MULTILINE)))
        run([*install, "--constraint", str(held), str(artifact)], cwd=home)
        program = str(environment / "bin/maestrale")
        told = run([program, "--version"], cwd=home, env=clean(home))
        if told != f"maestrale {versions.current()}":
            raise ReleaseFailed(f"{artifact.name} calls itself {told!r}")
        with serving(program, home) as url:
            for page in ("/", "/status", "/docs", "/web/js/chat.js", "/openapi.json", "/metrics"):
                get(url + page)
            models = json.loads(get(f"{url}/v1/models"))
            question = {
                "model": models["data"][0]["id"],
                "messages": [{"role": "user", "content": "Hello!"}],
                "max_tokens": 8,
            }
            answer = json.loads(get(f"{url}/v1/chat/completions", question))
            if not answer["choices"][0]["message"]["content"]:
                raise ReleaseFailed(f"{artifact.name} serves, but answers nothing")
            if verify:
                run([program, "verify", url], cwd=home, env=clean(home))


@contextmanager
def serving(program: str, home: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("w+") as log:
        process = subprocess.Popen(
            [program, "serve", "--port", str(port)],
            cwd=home,
            env=clean(home),
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ReleaseFailed(f"it does not serve:\n{(home / 'log').read_text()}")
                time.sleep(0.3)
            yield url
        finally:
            process.terminate()
            code = process.wait(60)
    if code != 0:
        raise ReleaseFailed(f"it ended with exit code {code}:\n{(home / 'log').read_text()}")


def image(
    target: str, context: Path, version: str, options: argparse.Namespace
) -> tuple[str, int, str]:
    """Build one image; the one for the CPU must also answer, with no network at all."""
    tag = f"maestrale:{version}-{target}"
    say(f"building {tag}")
    revision = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    arguments = {name: os.environ[name] for name in BUILD_ARGUMENTS if os.environ.get(name)}
    arguments["VERSION"] = version
    arguments["REVISION"] = revision.stdout.strip() or "unknown"
    arguments["CREATED"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if options.base:
        arguments["BASE"] = options.base
    command = build_command(context, "cpu" if target == "cpu" else "cuda", tag, arguments=arguments)
    if options.network:
        command[2:2] = ["--network", options.network]
    run(command, quiet=False)
    size = int(run(["docker", "image", "inspect", "--format", "{{.Size}}", tag]))
    if size > LIMITS.get(target, size):
        raise ReleaseFailed(f"{tag} has {size} bytes; {LIMITS[target]} are the limit")
    if target != "cpu":
        run(["docker", "run", "--rm", tag, "--version"])
        return tag, size, "starts; a GPU is needed for more"
    name = f"maestrale-release-{os.getpid()}"
    locked = ["--network", "none", "--read-only", "--tmpfs", "/tmp"]
    run(["docker", "run", "--detach", "--name", name, *locked, tag])
    try:
        health = ["docker", "exec", name, "python", "-P", "-m", "maestrale.cli.container", "health"]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(health, capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise ReleaseFailed(run(["docker", "logs", name]))
            time.sleep(1)
        verify = 'maestrale verify http://127.0.0.1:8000 --api-key "$(cat /data/api-key)"'
        run(["docker", "exec", name, "sh", "-c", verify])
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True)
    return tag, size, "verified, read-only, with no network"


def healthy(url: str) -> bool:
    try:
        get(f"{url}/health")
    except (OSError, ReleaseFailed):
        return False
    return True


def get(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise ReleaseFailed(f"{url} answers {error.code}: {error.read()[:300]!r}") from error


def clean(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not PRIVATE.match(key)}
    # The kernel is in the wheel: a compiler that is not there is missed by nobody.
    return {**kept, "HOME": str(home), "CXX": "/nowhere/c++"}


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ReleaseFailed(f"{name} is not installed")
    return found


def run(
    command: list[str],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    quiet: bool = True,
) -> str:
    """What the command prints. Raises: ReleaseFailed with the end of it when it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode != 0:
        end = "\n".join((done.stdout or "").splitlines()[-20:])
        raise ReleaseFailed(f"{' '.join(command)} failed ({done.returncode}):\n{end}")
    return (done.stdout or "").strip()


def say(text: str) -> None:
    print(f"release: {text} ...", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
