"""One GGUF file → a prepared model with its weights as an OpenVINO IR, for the openvino engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from msgspec import structs

from maestrale.errors import ModelError
from maestrale.models.gguf_checks import check_is_model
from maestrale.models.gguf_file import read_gguf
from maestrale.models.gguf_model import write_tokenizer
from maestrale.models.prepared import GRAPH_FILE, WEIGHTS_FILE, save_prepared
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults
from maestrale.models.store import Progress

# What the GGUF reader of OpenVINO GenAI knows (Mistral's models are "llama").
ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONVERSION_TIMEOUT = 3600.0  # seconds; a 7B model takes minutes


def convert_gguf(
    source: Path,
    folder: Path,
    *,
    name: str,
    digest: str,
    progress: Progress,
    sampling: SamplingDefaults = NEUTRAL,
) -> None:
    """Fill `folder` with the prepared model of the GGUF file `source`.

    `sampling` stands where the file itself does not say how it is to be sampled.

    Raises: ModelError when the file is damaged, of an unknown kind, or can't be converted.
    """
    progress("Reading the GGUF file", None)
    gguf = read_gguf(source)
    check_is_model(gguf.metadata, source)
    if "split.count" in gguf.metadata and gguf.metadata["split.count"] != 1:
        raise ModelError(
            f"{source} is one of {gguf.metadata['split.count']} parts of a split model. Join them "
            "with `llama-gguf-split --merge`, and give the whole file."
        )
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{source} is a model of the architecture {architecture!r}. From GGUF files "
            f"{', '.join(ARCHITECTURES)} (and what is built like them) can be served. Look for "
            "the same model in OpenVINO's format (https://huggingface.co/OpenVINO)."
        )
    prepared = write_tokenizer(gguf.metadata, folder, name=name, sampling=sampling)
    progress("Converting weights to OpenVINO (once)", None)
    _convert_weights(source, folder)
    save_prepared(structs.replace(prepared, weights_digest=digest), folder)


def _convert_weights(source: Path, folder: Path) -> None:
    link = folder / "model.gguf"  # OpenVINO GenAI writes its files beside the GGUF file
    link.symlink_to(source.resolve())
    script = Path(__file__).with_name("gguf_to_ir.py")
    try:
        result = subprocess.run(  # noqa: S603 (our own script and a path, no shell)
            [sys.executable, "-P", str(script), str(link), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=CONVERSION_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"Converting {source} took more than {CONVERSION_TIMEOUT:.0f} s and was stopped."
        ) from error
    finally:
        link.unlink()
    if result.returncode != 0:
        raise ModelError(f"OpenVINO can't convert {source}: {_reason(result)}.")
    if not (folder / GRAPH_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"OpenVINO converted {source} but wrote no model. Is the disk full?")


def _reason(result: subprocess.CompletedProcess[bytes]) -> str:
    if result.returncode < 0:
        return (
            f"its converter was ended by signal {-result.returncode} "
            "(the file is damaged, or memory ran out)"
        )
    lines = [line.strip() for line in result.stderr.decode("utf-8", "replace").splitlines()]
    return next((line.rstrip(".") for line in reversed(lines) if line), "it gave no reason")
