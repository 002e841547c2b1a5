"""What `--source` may be, and what of it goes to the machine."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from maestrale.errors import SourceError
from maestrale.machine import source
from maestrale.machine.source import Source, Staged, build_command, split_reference
from serving import ROOT


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with what the image is built from, and nothing else."""
    path = tmp_path / "maestrale-9.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(ROOT / "deploy/docker/Dockerfile", "maestrale/deploy/docker/Dockerfile")
        archive.writestr("maestrale/deploy/docker/requirements.lock", "# locked\n")
    return path


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("==0.1.0", "published", "0.1.0"),
        ("maestrale==1.2rc1", "published", "1.2rc1"),
        ("git+https://example.org/a/maestrale.git@v1", "git", None),
        ("https://example.org/a/maestrale", "git", None),
        ("git@example.org:a/maestrale.git", "git", None),
        ("ssh://git@example.org/a/maestrale.git", "git", None),
        ("ghcr.io/someone/maestrale:0.1.0-cuda", "image", None),
        ("localhost:5000/maestrale@sha256:" + "a" * 64, "image", None),
        ("maestrale:cpu", "image", None),
        (str(ROOT), "checkout", str(ROOT)),
    ],
)
def test_what_it_means(text: str, kind: str, value: str | None) -> None:
    found = Source.parse(text)
    assert (found.kind, found.value) == (kind, value or text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no source"),
        ("--upload-pack=x", "is no source"),
        ("no-such-thing", "no such file"),
        ("ghcr.io/someone/maestrale", "give its tag: ghcr.io/someone/maestrale:latest"),
        ("/nowhere/maestrale-1-py3-none-any.whl", "no such file"),
        ("/etc/hostname", "doesn't end in .whl"),
        ("/usr", "no checkout of maestrale"),
    ],
)
def test_what_is_no_source(text: str, said: str) -> None:
    with pytest.raises(SourceError, match="(?s)" + said):
        Source.parse(text)


def test_none_is_what_runs_here() -> None:
    assert Source.parse(None) == Source("checkout", str(ROOT))


def test_a_wheel_becomes_a_build_context(wheel: Path, tmp_path: Path) -> None:
    staged = Source.parse(str(wheel)).stage(tmp_path / "context")
    assert staged.context is not None
    files = {str(path.relative_to(staged.context)) for path in staged.context.rglob("*.*")}
    assert files == {"requirements.lock", f"wheels/{wheel.name}"}
    text = (staged.context / "Dockerfile").read_text()
    assert text == (ROOT / "deploy/docker/Dockerfile").read_text()
    assert staged.tag("cpu") == "maestrale:9.1-cpu"
    command = build_command("/there", "cuda", staged.tag("cuda"), arguments={"PIP_INDEX_URL": "u"})
    assert command[:2] == ["docker", "build"]
    assert command[-3:] == ["--build-arg", "PIP_INDEX_URL=u", "/there"]
    assert "maestrale:9.1-cuda" in command


def test_an_image_needs_nothing_built(tmp_path: Path) -> None:
    staged = Source.parse("maestrale:cpu").stage(tmp_path)
    assert staged == Staged(image="maestrale:cpu")
    assert staged.tag("cuda") == "maestrale:cpu"


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_wheel_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "maestrale-1.0-py3-none-any.whl"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("maestrale/__init__.py", "")
    else:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"can't be read as a wheel|no Dockerfile inside"):
        Source.parse(str(path)).stage(tmp_path / "context")


def test_another_projects_wheel(tmp_path: Path) -> None:
    path = tmp_path / "requests-2.0-py3-none-any.whl"
    path.touch()
    with pytest.raises(SourceError, match="no wheel of maestrale"):
        Source.parse(str(path)).stage(tmp_path / "context")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the least of a checkout, a tag, and a wheel in place of a build."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    (folder / "deploy/docker").mkdir(parents=True)
    (folder / "deploy/docker/Dockerfile").write_text("FROM scratch\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "maestrale"\nversion = "9.1"\n')
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        [*identity, "commit", "--quiet", "--message", "first"],
        ["tag", "v9.1"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_a_git_url_is_cloned_at_its_tag(
    repository: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(checkout: Path, folder: Path) -> Path:
        built.append((checkout / "pyproject.toml").read_text())
        return wheel

    monkeypatch.setattr(source, "build_wheel", build)
    url = f"git+file://{repository}@v9.1"
    assert Source.parse(url).stage(tmp_path / "context").version == "9.1"
    assert 'version = "9.1"' in built[0]
    with pytest.raises(SourceError, match="no branch, tag or commit v1"):
        Source.parse(f"git+file://{repository}@v1").stage(tmp_path / "other")
    with pytest.raises(SourceError, match="can't be cloned"):
        Source.parse(f"git+file://{repository}-not-there").stage(tmp_path / "third")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://host/a.git@v1", ("https://host/a.git", "v1")),
        ("https://me@host/a.git", ("https://me@host/a.git", "")),
        ("https://me@host/a.git@v1", ("https://me@host/a.git", "v1")),
        ("git@host:a.git", ("git@host:a.git", "")),
        ("git@host:a.git@main", ("git@host:a.git", "main")),
        ("ssh://git@host/a.git", ("ssh://git@host/a.git", "")),
    ],
)
def test_the_reference_of_a_git_url(url: str, parts: tuple[str, str]) -> None:
    assert split_reference(url) == parts


def test_the_image_installs_the_vllm_of_the_extra() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = pyproject["project"]["optional-dependencies"]["vllm"]
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert [f'ARG VLLM="{requirement}"' for requirement in wanted] == [
        line for line in dockerfile.splitlines() if line.startswith("ARG VLLM=")
    ]
