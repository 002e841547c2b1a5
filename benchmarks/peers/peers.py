"""Who is measured: how each is started, and which quantisation it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import install
from benchmarks.peers.install import CannotInstall, Say

ROOT = Path(__file__).resolve().parents[2]
# llama.cpp's server with a place for each of 32 streams, and room for four articles beside.
SLOTS, CONTEXT = 32, 24576
BUNDLED = "smollm2-135m-instruct"
XLLAMACPP = """
import sys, threading, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel = int(sys.argv[3]), int(sys.argv[4])
parameters.kv_unified = True
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(sys.argv[5])
parameters.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(parameters)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Server:
    """A server to start: `{port}` in the command is replaced."""

    command: Sequence[str]
    model: str
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One row of the table. `prepare` installs it and says how to start it."""

    key: str
    title: str
    quantisation: str
    """The form of weights and of the KV cache."""
    quality: tuple[str, str] | None
    """The type of its weights and whose arithmetic, as quality.py has them; None: not measured."""
    prepare: Callable[[Context], Server]
    keeps_running: bool = False
    """It starts so slowly that it is stopped (SIGSTOP) between the rounds, not ended."""
    learns: bool = False
    """Its first start prepares what later ones use, and is no part of a round."""
    rounds: int | None = None
    """At most so many: it takes long."""
    in_process: bool = False
    """Not a server: a program that takes the requests as token ids, and prints its numbers."""


@dataclass(frozen=True)
class Context:
    """What the peers are prepared with."""

    cache: Path
    gguf: Path
    prepared: Path
    """Our prepared folder of the same model."""
    threads: int
    say: Say
    pythons: Mapping[str, str]
    """Environments that are there already, by peer."""
    before: Path | None = None
    """A checkout of ours at an earlier commit, to be compared with."""


def ours(context: Context, *model: str) -> Server:
    """This checkout, serving the bundled model or another, with settings behind it."""
    from maestrale import __version__

    command = [sys.executable, "-m", "maestrale", "serve", *model, "--port", "{port}"]
    if model:
        command += ["--served-model-name", "any"]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return Server(command, BUNDLED if not model else "any", __version__, {"PYTHONPATH": path})


def _before(context: Context) -> Server:
    """Another checkout, by its own launcher, environment and cache."""
    folder = context.before
    if folder is None:
        raise CannotInstall("name a checkout of it with --before FOLDER")
    if not (folder / "maestrale").is_file():
        raise CannotInstall(f"{folder} is no checkout of maestrale")
    commit = install.commit_of(folder)
    cache = context.cache / f"before-{commit}"
    command = [str(folder.absolute() / "maestrale"), "serve", "--port", "{port}"]
    return Server(command, BUNDLED, commit, {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": ""})


def llama_server(
    context: Context, model: Path, slots: int = SLOTS, tokens: int = CONTEXT
) -> Server:
    """llama.cpp's server, built for this processor, with a place for each of `slots` streams."""
    folder = install.llamacpp(context.cache, context.say)
    threads = str(context.threads)
    command = [str(folder / "llama-server"), "-m", str(model), "--host", "127.0.0.1"]
    command += ["--port", "{port}", "-t", threads, "-tb", threads]
    command += ["-c", str(tokens), "-np", str(slots), "--kv-unified"]
    return Server(command, "any", install.llamacpp_version(context.cache))


def _llamacpp(kind: str | None) -> Callable[[Context], Server]:
    def prepare(context: Context) -> Server:
        model = context.gguf
        if kind is not None:
            model = install.requantised(context.cache, context.gguf, kind, context.say)
        return llama_server(context, model)

    return prepare


def _xllamacpp(context: Context) -> Server:
    python = install.xllamacpp(context.cache, context.say)
    command = [str(python), "-c", XLLAMACPP, str(context.gguf), "{port}", str(CONTEXT), str(SLOTS)]
    version = install.version(python, "xllamacpp")
    return Server([*command, str(context.threads)], "any", f"xllamacpp {version}")


def _genai(context: Context) -> Server:
    python = install.genai(context.cache, context.say)
    command = [str(python), str(Path(__file__).with_name("genai.py")), str(context.gguf)]
    return Server(command, "", install.version(python, "openvino-genai"))


def _vllm(context: Context) -> Server:
    given = context.pythons.get("vllm")
    python = Path(given) if given else install.vllm(context.cache, context.say)
    folder = install.safetensors(context.cache, python, context.gguf, context.say)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "any", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--dtype", "float32", "--max-model-len", "4096", "--max-num-seqs", "64"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(context.cache / "vllm-cache"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    return Server(command, "any", install.version(python, "vllm-cpu"), environment)


PEERS = (
    Peer("ours", "maestrale", "the Q4_1 GGUF, 8-bit KV", ("Q4_1", "ours"), ours),
    Peer(
        "before",
        "maestrale, the earlier commit",
        "its defaults",
        None,
        _before,
        learns=True,
    ),
    Peer(
        "genai",
        "OpenVINO GenAI, no server, its defaults",
        "the Q4_1 GGUF, its weights rounded anew, default KV",
        None,
        _genai,
        in_process=True,
    ),
    Peer(
        "llamacpp-q4_1",
        "llama.cpp server, native build",
        "the Q4_1 GGUF, f16 KV",
        ("Q4_1", "llamacpp"),
        _llamacpp(None),
    ),
    Peer(
        "llamacpp-q4_0",
        "llama.cpp server, native build",
        "Q4_0 requantised (repacked when loaded), f16 KV",
        ("Q4_0", "llamacpp"),
        _llamacpp("Q4_0"),
    ),
    Peer(
        "xllamacpp",
        "llama.cpp server, xllamacpp's wheel",
        "the Q4_1 GGUF, f16 KV",
        ("Q4_1", "llamacpp"),
        _xllamacpp,
        rounds=2,
    ),
    Peer(
        "vllm",
        "vLLM server, CPU build",
        "float32 safetensors from the GGUF, f32 KV",
        ("Q4_1", "exact"),
        _vllm,
        keeps_running=True,
        learns=True,
        rounds=2,
    ),
)
