"""The launcher with real shells, Pythons, pip and uv: fresh, moved, broken, and poor machines.

Each test has a small checkout of its own: the launcher as it is, a lock with one tiny package
that a local folder provides, and a `maestrale` package that tells how it was run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pseudo_terminal import in_terminal
from serving import ROOT

TOOLS = "cat cksum cut date dirname flock getent grep id mkdir mv readlink rm sed tail uname"
PYTHON = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
UV = Path(sys.prefix) / "bin" / "uv"
REPORT = """\
import json, os, sys
if sys.argv[1:] == ["fail"]:
    sys.exit(7)
import tiny
print(json.dumps({
    "arguments": sys.argv[1:], "prefix": sys.prefix, "tiny": tiny.VERSION,
    "working folder": os.getcwd(), "pid": os.getpid(),
}))
"""


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """A wheel written by hand; returns its line in a lock."""
    info = f"{name}-{version}.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": tag,
    }
    record = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in {**contents, f"{info}/RECORD": record}.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(member, content)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


class Checkout:
    """A checkout, and a machine that has `TOOLS`, and on top what a test gives it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout with space"
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.wheels = folder / "wheels"
        for path in (self.root / "scripts", self.root / "src/maestrale", self.home, self.bin):
            path.mkdir(parents=True)
        self.wheels.mkdir()
        shutil.copy(ROOT / "maestrale", self.root)
        for script in ("environment.sh", "get_uv.py"):
            shutil.copy(ROOT / "scripts" / script, self.root / "scripts")
        (self.root / "src/maestrale/__init__.py").touch()
        (self.root / "src/maestrale/__main__.py").write_text(REPORT)
        self.lock("1.0")
        for tool in TOOLS.split():
            self.give(tool, shutil.which(tool))
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_OFFLINE": "1",
            "UV_NO_CONFIG": "1",
            "UV_FIND_LINKS": str(self.wheels),
            "UV_CACHE_DIR": str(folder / "uv-cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            "LC_ALL": "C.UTF-8",
        }

    def lock(self, version: str) -> None:
        line = make_wheel(
            self.wheels, "tiny", version, {"tiny/__init__.py": f"VERSION = '{version}'\n"}
        )
        (self.root / "locks").mkdir(exist_ok=True)
        (self.root / "locks/run.lock").write_text(line)

    def give(self, tool: str, target: str | Path | None) -> None:
        if target is not None:
            (self.bin / tool).symlink_to(target)

    def give_script(self, tool: str, text: str) -> None:
        script = self.bin / tool
        script.unlink(missing_ok=True)  # it may be a link to the real one
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)

    def start(
        self, *arguments: str, launcher: Path | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(launcher or self.root / "maestrale"), *arguments],
            cwd=cwd or self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, launcher: Path | None = None, cwd: Path | None = None
    ) -> tuple[int, str, str]:
        process = self.start(*arguments, launcher=launcher, cwd=cwd)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment made by the system's Python and pip, to copy."""
    checkout = Checkout(tmp_path_factory.mktemp("installed"))
    checkout.give("python3", PYTHON)
    code, _, err = checkout.run()
    assert code == 0, err
    return checkout.root / ".venv"


@pytest.fixture
def ready(checkout: Checkout, installed: Path) -> Checkout:
    """A checkout with its environment."""
    checkout.give("python3", PYTHON)
    shutil.copytree(installed, checkout.root / ".venv", symlinks=True)
    return checkout


def test_first_start_installs_and_the_second_only_runs(checkout: Checkout) -> None:
    checkout.give("python3", PYTHON)
    code, out, err = checkout.run("serve", "--port", "1", "a b")
    assert code == 0, err
    report = json.loads(out)
    assert report["arguments"] == ["serve", "--port", "1", "a b"]
    assert report["prefix"] == str(checkout.root / ".venv")
    assert report["working folder"] == str(checkout.home)
    assert "installing 1 packages" in err
    code, out, err = checkout.run("again")
    assert (code, err) == (0, "")
    assert json.loads(out)["arguments"] == ["again"]
    left = {path.name for path in checkout.root.iterdir()}
    assert left == {".venv", "locks", "maestrale", "scripts", "src"}


def test_the_command_takes_the_launchers_place(ready: Checkout) -> None:
    process = ready.start()
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["pid"] == process.pid
    assert ready.run("fail")[0] == 7


def test_through_symlinks_and_from_elsewhere(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("checkout with space/maestrale")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    code, out, err = ready.run("x", launcher=tmp_path / "two", cwd=Path("/"))
    assert (code, err) == (0, "")
    assert json.loads(out)["working folder"] == "/"


def test_a_moved_checkout_still_runs(ready: Checkout, tmp_path: Path) -> None:
    ready.root = ready.root.rename(tmp_path / "moved")
    code, _, err = ready.run()
    assert code == 0, err


def test_an_interrupted_installation_is_repaired(ready: Checkout) -> None:
    (ready.root / ".venv/stamp").unlink()
    for package in (ready.root / ".venv").glob("lib/*/site-packages/tiny"):
        shutil.rmtree(package)
    code, out, err = ready.run()
    assert code == 0, err
    assert json.loads(out)["tiny"] == "1.0"


def test_a_python_that_is_gone_is_replaced(ready: Checkout) -> None:
    python = ready.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    code, _, err = ready.run()
    assert code == 0, err
    assert "installing" in err


def test_a_new_lock_is_installed(ready: Checkout) -> None:
    ready.lock("2.0")
    code, out, err = ready.run()
    assert code == 0, err
    assert json.loads(out)["tiny"] == "2.0"


def test_a_package_that_was_tampered_with_is_refused(checkout: Checkout) -> None:
    checkout.give("python3", PYTHON)
    make_wheel(checkout.wheels, "tiny", "1.0", {"tiny/__init__.py": "VERSION = 'evil'\n"})
    code, out, err = checkout.run()
    assert (code, out) == (1, "")
    assert "hash" in err.lower()
    assert not (checkout.root / ".venv/stamp").exists()


def test_starts_at_once_install_once(checkout: Checkout) -> None:
    checkout.give("python3", PYTHON)
    starts = [checkout.start(str(number)) for number in range(4)]
    results = [(*start.communicate(timeout=120), start.returncode) for start in starts]
    assert [code for _, _, code in results] == [0] * 4, results
    assert sum("installing" in err and "waiting" not in err for _, err, _ in results) == 1


def test_uv_is_used_where_there_is_one(checkout: Checkout) -> None:
    checkout.give("uv", UV)
    checkout.give("python3", PYTHON)
    code, out, err = checkout.run()
    assert code == 0, err
    assert json.loads(out)["tiny"] == "1.0"
    assert "uv" in (checkout.root / ".venv/pyvenv.cfg").read_text()


def test_a_uv_that_does_not_run_is_passed_over(checkout: Checkout) -> None:
    checkout.give_script("uv", "exit 127")
    checkout.give("python3", PYTHON)
    assert checkout.run()[0] == 0


def test_a_newer_python_beside_an_old_one_is_found(checkout: Checkout) -> None:
    checkout.give_script("python3", "exit 1")
    checkout.give("python3.11", PYTHON)
    code, _, err = checkout.run()
    assert code == 0, err


def test_without_ensurepip_the_systems_pip_will_do(checkout: Checkout) -> None:
    checkout.give_script(
        "python3", f'case "$*" in *"import ensurepip"*) exit 1;; esac; exec {PYTHON} "$@"'
    )
    code, _, err = checkout.run()
    assert code == 0, err


# A Python as Debian's package python3 has it: neither pip nor what makes environments.
BARE = f'case "$*" in *"import "[epv]*) exit 1;; esac; exec {PYTHON} "$@"'
OLD = f'case "$*" in *version_info*) exit 1;; esac; exec {PYTHON} "$@"'


def offer_uv(checkout: Checkout, script: str = f'exec {UV} "$@"') -> None:
    """A wheel of uv in the folder of wheels, and its line in the lock as scripts/lock writes it."""
    line = make_wheel(
        checkout.wheels, "uv", "9.9", {"uv-9.9.data/scripts/uv": f"#!/bin/sh\n{script}\n"}
    )
    wrapped = line.replace(" --", " \\\n    --")
    (checkout.root / "locks/dev.lock").write_text(f"tiny==1\n{wrapped}zzz==1\n")


@contextmanager
def package_index(wheels: Path, user: str = "") -> Iterator[tuple[str, list[str]]]:
    """A package index of these wheels on this machine; its address, and what was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            expected = "Basic " + base64.b64encode(user.encode()).decode()
            if user and self.headers.get("Authorization") != expected:
                self.send_error(401)
                return
            file = wheels / self.path.rpartition("/")[2]
            name = self.path.split("/")[-2]
            if file.is_file():
                content = file.read_bytes()
            else:
                links = [
                    f'<a href="../../files/{one.name}">x</a>'
                    for one in wheels.glob(f"{name}-*")
                    if self.path.startswith("/simple/")
                ]
                content = "".join(links).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at = f"{user}@" if user else ""
        yield f"http://{at}127.0.0.1:{server.server_port}/simple", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_python_without_venv_and_pip_gets_a_uv(checkout: Checkout) -> None:
    offer_uv(checkout)
    checkout.give_script("python3", BARE)
    told = give_apt(checkout, "")
    code, out, err = checkout.run("x")
    assert code == 0, err
    assert "getting uv" in err
    assert json.loads(out)["tiny"] == "1.0"
    assert not told.exists()
    left = {path.name for path in checkout.root.iterdir()}
    assert left == {".venv", "locks", "maestrale", "scripts", "src"}
    # It stays: what is fetched later needs it, and a new lock does not fetch it again.
    assert (checkout.root / ".venv/bin/uv").is_file()
    checkout.lock("2.0")
    next(checkout.wheels.glob("uv-*")).unlink()
    code, out, err = checkout.run()
    assert code == 0, err
    assert "getting uv" not in err
    assert json.loads(out)["tiny"] == "2.0"
    (checkout.root / "locks/machine.lock").write_text(
        make_wheel(checkout.wheels, "more", "1.0", {"more/__init__.py": ""})
    )
    code, _, err = checkout.run("setup", "root@host")
    assert code == 0, err
    assert any((checkout.root / ".venv/lib").glob("*/site-packages/more"))


@pytest.mark.parametrize("told_by", ["PIP_INDEX_URL", "UV_INDEX_URL", "pip.conf", "extra"])
def test_uv_comes_from_the_index_that_pip_or_uv_would_ask(checkout: Checkout, told_by: str) -> None:
    offer_uv(checkout)
    checkout.give_script("python3", BARE)
    for name in (
        "PIP_NO_INDEX",
        "PIP_FIND_LINKS",
        "UV_OFFLINE",
        "UV_FIND_LINKS",
        "PIP_CONFIG_FILE",
    ):
        del checkout.environment[name]
    with package_index(checkout.wheels, "me:word") as (url, asked):
        if told_by == "pip.conf":
            (checkout.home / ".config/pip").mkdir(parents=True)
            (checkout.home / ".config/pip/pip.conf").write_text(f"[global]\nindex-url = {url}\n")
        elif told_by == "extra":
            checkout.environment["PIP_INDEX_URL"] = url.replace("/simple", "/empty")
            checkout.environment["PIP_EXTRA_INDEX_URL"] = url
        else:
            checkout.environment[told_by] = url
        code, out, err = checkout.run()
    assert code == 0, err
    assert json.loads(out)["tiny"] == "1.0"
    assert any(path.startswith("/simple/uv/") for path in asked)
    assert any(path.startswith("/simple/tiny/") for path in asked)


def test_an_index_that_cannot_be_reached_is_said_before_what_to_do(checkout: Checkout) -> None:
    checkout.give_script("python3", BARE)
    (checkout.root / "locks/dev.lock").write_text(f"uv==9.9 \\\n    --hash=sha256:{'0' * 64}\n")
    del checkout.environment["PIP_NO_INDEX"]
    checkout.environment |= {"PIP_INDEX_URL": "http://me:secret@127.0.0.1:9/simple"}
    code, out, err = checkout.run()
    assert (code, out) == (1, "")
    assert "127.0.0.1:9/simple/uv/: failed to fetch" in err
    assert "secret" not in err
    assert "sudo apt-get install python3-venv" in err
    assert not list(checkout.root.glob(".venv.uv*"))


def test_an_old_python_gets_a_uv(checkout: Checkout) -> None:
    offer_uv(checkout)
    checkout.give_script("python3", OLD)
    # What uv would download: a Python in the folder that it manages.
    version = ".".join(map(str, sys.version_info[:3]))
    managed = checkout.home / f"cpython-{version}-linux-{platform.machine()}-gnu"
    managed.symlink_to(PYTHON.parent.parent)
    checkout.environment["UV_PYTHON_INSTALL_DIR"] = str(checkout.home)
    code, _, err = checkout.run()
    assert "getting uv" in err
    assert code == 0, err


@pytest.mark.parametrize("python", [BARE, OLD])
def test_a_uv_that_was_tampered_with_is_refused(checkout: Checkout, python: str) -> None:
    offer_uv(checkout, "exit 0")
    (checkout.root / "locks/dev.lock").write_text(f"uv==9.9 \\\n    --hash=sha256:{'0' * 64}\n")
    checkout.give_script("python3", python)
    code, _, err = checkout.run()
    assert code == 1
    assert "none of the hashes" in err
    assert not (checkout.root / ".venv").exists()


def give_apt(checkout: Checkout, answer: str) -> Path:
    """Root, and an apt-get that gives the machine a python3 and tells of it in a file."""
    told = checkout.home / "apt"
    checkout.give("ln", shutil.which("ln"))
    checkout.give_script("id", "echo 0")
    checkout.give_script("apt-get", f'echo "$@" >>{told}; ln -s {PYTHON} "{checkout.bin}/python3"')
    if answer:
        checkout.environment["MAESTRALE_APT"] = answer
    return told


@pytest.mark.parametrize("answer", ["", "no", "1"])
def test_apt_is_not_run_unasked(checkout: Checkout, answer: str) -> None:
    told = give_apt(checkout, answer)
    code, out, err = checkout.run()
    assert (code, out) == (1, "")
    assert not told.exists()
    assert "MAESTRALE_APT=yes" in err
    assert "apt-get install python3 python3-venv" in err


def test_apt_is_run_where_that_was_said(checkout: Checkout) -> None:
    told = give_apt(checkout, "yes")
    code, _, err = checkout.run()
    assert code == 0, err
    assert told.read_text() == "install -y --no-install-recommends python3 python3-venv\n"
    assert "installing system packages: python3 python3-venv" in err


@pytest.mark.parametrize(("typed", "done"), [("y", True), ("n", False), ("", False)])
def test_at_a_terminal_it_is_asked(checkout: Checkout, typed: str, done: bool) -> None:
    told = give_apt(checkout, "")
    with in_terminal([str(checkout.root / "maestrale")], checkout.environment) as one:
        one.wait_for("with apt-get")
        one.enter(typed)
        one.wait_for_end()
    assert told.exists() == done


@pytest.mark.parametrize(
    ("python", "parts"),
    [
        (None, ["there is no python3", "python3-venv", "astral.sh/uv"]),
        (
            'case "$*" in *"import "[epv]*) exit 1;; esac; exec {python} "$@"',
            ["venv and ensurepip are missing", "sudo apt-get install python3-venv", "uv"],
        ),
        (
            'case "$*" in --version) echo Python 3.10.12;; *) exit 1;; esac',
            ["this is Python 3.10.12", "Python 3.11 to 3.14", "astral.sh/uv"],
        ),
    ],
    ids=["no python", "no venv", "old python"],
)
def test_what_is_missing_is_named(checkout: Checkout, python: str | None, parts: list[str]) -> None:
    if python is not None:
        checkout.give_script("python3", python.format(python=PYTHON))
    code, out, err = checkout.run()
    assert (code, out) == (1, "")
    assert all(part in err for part in parts), err


def test_a_lock_that_has_nothing_for_this_machine_is_said(checkout: Checkout) -> None:
    checkout.give("python3", PYTHON)
    for wheel in checkout.wheels.iterdir():
        wheel.rename(wheel.with_name("tiny-1.0-cp311-cp311-win_amd64.whl"))
    code, _, err = checkout.run()
    assert code == 1
    assert "no build of it for this machine" in err


def test_no_network_is_said(checkout: Checkout) -> None:
    checkout.give("python3", PYTHON)
    for wheel in checkout.wheels.iterdir():
        wheel.unlink()
    del checkout.environment["PIP_NO_INDEX"]
    checkout.environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    code, _, err = checkout.run()
    assert code == 1
    assert "the package index can't be reached" in err
    assert "PIP_INDEX_URL" in err


@pytest.mark.parametrize("home", [None, ""])
def test_without_home(checkout: Checkout, home: str | None) -> None:
    checkout.give("python3", PYTHON)
    del checkout.environment["HOME"]
    if home is not None:
        checkout.environment["HOME"] = home
    checkout.environment["PIP_NO_CACHE_DIR"] = "1"
    code, _, err = checkout.run(cwd=checkout.root)
    assert code == 0, err


def test_the_users_python_settings_do_not_reach_it(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("raise SystemExit('the wrong tiny')")
    ready.environment |= {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PIP_USER": "1"}
    code, _, err = ready.run(cwd=tmp_path)
    assert (code, err) == (0, "")


@pytest.fixture
def unwritable(checkout: Checkout) -> Iterator[Checkout]:
    """A checkout that nobody can write, also not root: a read-only file system."""
    if os.geteuid() == 0:
        mount = ["mount", "--bind", "-o", "ro", str(checkout.root), str(checkout.root)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"can't mount read-only here: {done.stderr.strip()}")
        yield checkout
        subprocess.run(["umount", str(checkout.root)], check=True)
    else:
        checkout.root.chmod(0o555)
        yield checkout
        checkout.root.chmod(0o755)


def test_a_checkout_that_cannot_be_written(unwritable: Checkout, tmp_path: Path) -> None:
    unwritable.give("python3", PYTHON)
    unwritable.environment["XDG_DATA_HOME"] = str(tmp_path / "data")
    code, out, err = unwritable.run()
    assert code == 0, err
    assert Path(json.loads(out)["prefix"]).parent == tmp_path / "data/maestrale"
    assert unwritable.run()[2] == ""


def test_nowhere_to_write(unwritable: Checkout, tmp_path: Path) -> None:
    unwritable.give("python3", PYTHON)
    unwritable.environment["XDG_DATA_HOME"] = str(unwritable.root / "data")
    code, _, err = unwritable.run()
    assert code == 1
    assert "set XDG_DATA_HOME" in err


def test_setup_brings_its_extra_once(checkout: Checkout, installed: Path) -> None:
    shutil.copytree(installed, checkout.root / ".venv", symlinks=True)
    checkout.give("python3", PYTHON)
    line = make_wheel(checkout.wheels, "more", "1.0", {"more/__init__.py": ""})
    (checkout.root / "locks/machine.lock").write_text(line)

    def has_it() -> bool:
        return any((checkout.root / ".venv/lib").glob("*/site-packages/more"))

    assert checkout.run()[0] == 0  # the copied environment becomes this checkout's
    for arguments in (("serve",), ("setup", "--help"), ("setup", "--cloud-init")):
        code, _, err = checkout.run(*arguments)
        assert (code, has_it()) == (0, False), err
    code, out, err = checkout.run("setup", "root@host", "--dry-run")
    assert (code, has_it()) == (0, True), err
    assert json.loads(out)["arguments"] == ["setup", "root@host", "--dry-run"]
    assert "installing the extra 'machine'" in err
    assert checkout.run("setup")[2] == ""
