"""A signed apt repository on loopback, with tiny packages under the names of real ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path


@dataclass
class Package:
    """`files`: path → (text, mode). `postinst`: shell lines."""

    name: str
    version: str
    depends: str = ""
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    postinst: str = ""

    @property
    def control(self) -> str:
        depends = f"Depends: {self.depends}\n" if self.depends else ""
        return (
            f"Package: {self.name}\nVersion: {self.version}\nArchitecture: all\n"
            f"Maintainer: Tests <tests@example.org>\n{depends}Description: stands in for a test\n"
        )

    def build(self, folder: Path, work: Path) -> Path:
        """Make the .deb in `folder`."""
        root = work / f"{self.name}-{self.version}"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text(self.control)
        if self.postinst:
            script = root / "DEBIAN/postinst"
            script.write_text(f"#!/bin/sh\nset -e\n{self.postinst}\n")
            script.chmod(0o755)
        for path, (text, mode) in self.files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(mode)
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return folder / f"{self.name}_{self.version}_all.deb"


class Signer:
    """A key pair of its own, made in `home`."""

    def __init__(self, home: Path, name: str = "tests") -> None:
        home.mkdir(mode=0o700, parents=True)
        self.home = home
        self._gpg("--quick-gen-key", f"{name}@example.org", "ed25519", "sign", "never")
        self.public = self._gpg("--armor", "--export")
        listed = self._gpg("--with-colons", "--list-keys")
        self.fingerprint = next(
            line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:")
        )

    def sign(self, text: str) -> str:
        return self._gpg("--clearsign", input=text)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], capture_output=True)

    def _gpg(self, *arguments: str, input: str = "") -> str:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--passphrase", ""]
        done = subprocess.run(
            [*command, "--pinentry-mode", "loopback", *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@dataclass
class Repository:
    """A flat repository in `folder`, served while `serving`."""

    folder: Path
    url: str = ""

    def publish(self, packages: list[Path], signer: Signer | None) -> None:
        """Write the index of these .deb files; None: an unsigned one."""
        entries = []
        for path in packages:
            data = path.read_bytes()
            control = subprocess.run(
                ["dpkg-deb", "--field", path], capture_output=True, text=True, check=True
            ).stdout.strip()
            link = self.folder / path.name
            if not link.exists():
                link.symlink_to(path)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(
                f"{control}\nFilename: {path.name}\nSize: {len(data)}\nSHA256: {digest}\n"
            )
        index = "\n".join(entries)
        (self.folder / "Packages").write_text(index)
        digest = hashlib.sha256(index.encode()).hexdigest()
        size = len(index.encode())
        release = f"Date: {formatdate(usegmt=True)}\nSHA256:\n {digest} {size} Packages\n"
        for name in ("Release", "InRelease"):
            (self.folder / name).unlink(missing_ok=True)
        if signer is None:
            (self.folder / "Release").write_text(release)
        else:
            (self.folder / "InRelease").write_text(signer.sign(release))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Repository]:
    """Serve the folder on a port of its own on loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Repository(folder, f"http://127.0.0.1:{server.server_address[1]}/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nvidia_packages(branch: str, version: str) -> list[Package]:
    """What NVIDIA's repositories have, as far as set-up asks: small, and in two branches."""
    smi = (
        "#!/bin/sh\n"
        "[ -e /proc/driver/nvidia ] || { echo 'NVIDIA-SMI has failed because it could not "
        "communicate with the NVIDIA driver.'; exit 9; }\n"
    )
    ctk = (
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "NVIDIA Container Toolkit CLI version 1.18.0"; '
        "exit 0; fi\n"
        'if [ "$1 $2 $3" != "runtime configure --runtime=docker" ]; then exit 2; fi\n'
        "mkdir -p /etc/docker\n"
        'echo \'{"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}\' '
        "> /etc/docker/daemon.json\n"
    )
    newer = "590.44.01-1"
    found = [
        Package("nvidia-container-toolkit", "1.18.0-1", files={"/usr/bin/nvidia-ctk": (ctk, 0o755)})
    ]
    for each in (version, newer):
        found += [
            Package("nvidia-kernel-open-dkms", each),
            Package(
                "nvidia-driver-cuda",
                each,
                depends=f"libcuda1 (= {each})",
                files={"/usr/bin/nvidia-smi": (smi, 0o755)},
            ),
            Package("libcuda1", each),
        ]
    return found
