"""The kernel from the file on: every family against transformers, exactly and in 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import golden_files as golden
from kernel_steps import computed
from maestrale.engines.cpu import memory
from maestrale.engines.cpu.decoder import load_decoder
from maestrale.engines.cpu.library import Library
from maestrale.engines.cpu.model_files import spec_of
from maestrale.errors import EngineError, ModelError
from maestrale.models.tensor_info import EXACT_TYPES, GGML_NUMBERS, MATRIX_TYPES
from tiny_models import write_safetensors

# Of 8-bit activations and an 8-bit KV cache, with these random weights; real ones are kinder.
MOST_DIVERGENCE = 0.003
LARGE_VALUES = {"gptoss": 0.02}  # MXFP4's are up to 0.75, where the others' are up to 0.25


def made(name: str, kind: str, folder: Path) -> Path:
    return (golden.gguf_file if kind == "gguf" else golden.hf_folder)(name, folder)


def served(name: str) -> int:
    """The context that its golden logits were computed for."""
    return 128 if len(golden.model(name).text()) > 32 else 32


@pytest.mark.parametrize("kind", ["gguf", "folder"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_every_family_is_that_of_transformers(
    kernel: Path, name: str, kind: str, tmp_path: Path
) -> None:
    path, tokens, expected = made(name, kind, tmp_path), golden.model(name).text(), None
    count = 12 if (name, kind) == ("mistral", "gguf") else len(tokens)  # see test_families
    expected = golden.logits(name)[:count]
    for exact in (True, False):
        decoder = load_decoder(path, kernel, context=served(name), threads=2, exact=exact)
        try:
            logits = computed(decoder, tokens)[:count]
        finally:
            decoder.close()
        if exact:
            np.testing.assert_allclose(logits, expected, atol=1e-4)
        else:
            most = LARGE_VALUES.get(name, MOST_DIVERGENCE)
            assert golden.kl_divergence(logits, expected) < most


@pytest.mark.parametrize("name", ["gemma3", "gptoss", "mistral", "ministral3"])
def test_steps_of_any_size_give_the_same_bits(kernel: Path, name: str, tmp_path: Path) -> None:
    path, tokens = golden.hf_folder(name, tmp_path), golden.model(name).text()
    results = []
    for chunk, threads in ((None, 2), (1, 1), (7, 2)):
        decoder = load_decoder(path, kernel, context=128, threads=threads)
        results.append(computed(decoder, tokens, chunk))
        decoder.close()
    assert all((each == results[0]).all() for each in results)


@pytest.mark.parametrize("name", golden.NAMES)
def test_what_it_takes_is_known_beforehand(kernel: Path, name: str, tmp_path: Path) -> None:
    path = golden.gguf_file(name, tmp_path)
    spec = spec_of(path)
    decoder = load_decoder(path, kernel, context=128, threads=1)
    assert decoder.block_bytes == memory.block_bytes(spec)
    assert decoder.weight_bytes == memory.weight_bytes(spec) - 4 * spec.vector_elements
    decoder.close()


def test_packed_sizes_are_the_kernel_s(kernel: Path) -> None:
    library = Library(kernel)
    for kind, number in GGML_NUMBERS.items():
        for rows, columns in ((1, 256), (48, 512), (17, 2560)):
            packed = library.mst_packed_bytes(number, rows, columns)
            assert packed > 0 or kind not in MATRIX_TYPES, kind
            if packed > 0:
                assert packed == memory.packed_bytes(kind, rows, columns), kind
        assert bool(library.mst_type_is_exact(number)) == (kind in EXACT_TYPES), kind


def test_the_identity_names_what_decides_the_result(kernel: Path, tmp_path: Path) -> None:
    def identity(name: str, **more: int) -> str:
        path = golden.hf_folder(name, tmp_path)
        options = {"context": 128, "threads": 1} | more
        decoder = load_decoder(path, kernel, **options)  # type: ignore[arg-type]
        decoder.close()
        return decoder.identity

    assert identity("llama2") == identity("llama2", threads=2, context=64)
    assert identity("llama2") != identity("mistral")
    # Longrope has other frequencies for short contexts.
    assert identity("phi4mini") != identity("phi4mini", context=32)
    config = tmp_path / "llama2" / "config.json"
    before = identity("llama2")
    golden.hf_folder("llama2", tmp_path)
    config.write_text(config.read_text().replace("1e-05", "1e-06"))
    path = tmp_path / "llama2"
    decoder = load_decoder(path, kernel, context=128, threads=1)
    decoder.close()
    assert decoder.identity != before
    assert decoder.arithmetic == Library(kernel).arithmetic


def test_packing_tells_how_far_it_is_and_what_is_rounded(
    kernel: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []
    with caplog.at_level(logging.INFO, logger="maestrale"):
        load_decoder(
            golden.hf_folder("llama2", tmp_path),
            kernel,
            context=64,
            threads=1,
            progress=seen.append,
        ).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    said = [record.message for record in caplog.records if "rounded" in record.message]
    assert said == ["Weights of the type BF16 are rounded to 8 bits in groups of 32."]


def test_weights_that_are_no_numbers_are_refused(kernel: Path, tmp_path: Path) -> None:
    for tensor in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        folder = golden.hf_folder("llama2", tmp_path, "F32")
        weights = golden.model("llama2").weights()
        weights[tensor].reshape(-1)[3] = np.nan
        write_safetensors(folder / "model.safetensors", weights, "F32", checked=False)
        with pytest.raises(ModelError, match=tensor):
            load_decoder(folder, kernel, context=64, threads=1)


def test_an_instruction_set_that_is_not_there_is_named(kernel: Path, tmp_path: Path) -> None:
    path = golden.hf_folder("llama2", tmp_path)
    with pytest.raises(EngineError, match=r"'sse9'.*scalar"):
        load_decoder(path, kernel, context=64, threads=1, level="sse9")


def test_a_file_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernel.so").write_bytes(b"\x7fELF")
    with pytest.raises(EngineError, match="is no kernel"):
        Library(tmp_path / "kernel.so")
