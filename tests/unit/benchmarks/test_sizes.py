"""bench-peers --sizes: its files, what is kept between its runs, its section of the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from benchmarks.peers import sizes_report
from benchmarks.peers.__main__ import bundled_gguf
from benchmarks.peers.limits import model_size
from benchmarks.peers.shapes import KINDS, SHAPES, tensors
from benchmarks.peers.sizes import CELLS, Store
from benchmarks.peers.write_shape import write
from maestrale.engines.cpu.model_files import open_model

SMALL = {
    "llama": replace(
        SHAPES["llama-3.2-1b"], layers=8, hidden=256, feed_forward=512, heads=4, kv_heads=2,
        vocab=400,
    ),
    "qwen3moe": replace(
        SHAPES["qwen3-30b-a3b"], layers=8, hidden=256, feed_forward=256, heads=2, kv_heads=1,
        vocab=60000, experts=4, used=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_a_file_has_its_shape_and_weights_that_keep_activations_in_bounds(
    name: str, kind: str, tmp_path: Path
) -> None:
    shape = SMALL[name]
    path = tmp_path / "model.gguf"
    write(path, shape, kind, bundled_gguf())
    described = open_model(path)
    spec = described.spec
    assert (spec.layers, spec.hidden, spec.vocab) == (shape.layers, shape.hidden, shape.vocab)
    assert spec.head_dim == shape.width
    described.source.mapped.close()
    assert model_size(path).bytes < path.stat().st_size
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            assert np.ptp(values) > 0.1, tensor.name
        else:
            deviation = values.shape[-1] ** -0.5
            assert np.std(values) == pytest.approx(deviation, rel=0.2), tensor.name
            assert abs(np.mean(values)) < 0.15 * deviation, tensor.name


def test_the_types_of_a_file_are_those_of_llama_cpps_quantiser() -> None:
    types = {tensor.name: tensor.type for tensor in tensors(SHAPES["mistral-7b"], "Q4_K_M")}
    more = [n for n in range(32) if types[f"blk.{n}.ffn_down.weight"] == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == types["blk.5.attn_q.weight"] == "Q4_K"
    tied = {tensor.name: tensor.type for tensor in tensors(SHAPES["qwen3-4b"], "Q4_0")}
    assert tied["token_embd.weight"] == "Q6_K"
    assert "output.weight" not in tied


def test_what_is_measured_is_kept_and_a_run_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    cell = CELLS["8"]
    store = Store(path, fresh=False)
    assert store.missing("a Q4_0", cell) == cell.rounds
    store.values("a Q4_0", "ours", "streams_8").append(30.0)
    assert store.missing("a Q4_0", cell) == cell.rounds, "the other side is missing"
    store.values("a Q4_0", "llamacpp", "streams_8").append(10.0)
    store.save()
    again = Store(path, fresh=False)
    assert again.missing("a Q4_0", cell) == cell.rounds - 1
    assert again.missing("b Q4_0", cell) == cell.rounds
    assert Store(path, fresh=True).missing("a Q4_0", cell) == cell.rounds


DATA: dict[str, Any] = {
    "command": "scripts/bench-peers --sizes",
    "date": "2026-01-01 00:00 UTC",
    "versions": {"llamacpp": "b1", "ours": "0.1", "commit": "abcdef0"},
    "limits": {"read_bandwidth": 10e9, "int8_ops": 1e12},
    "files": {
        "mistral-7b Q4_0": {
            "facts": {
                "title": "Mistral-7B",
                "size": 4e9,
                "weights": 7e9,
                "head_weights": 1e9,
                "bytes": 4e9,
                "attention": 500_000,
            },
            "ours": {"streams_1": [2.0, 2.4, 2.2], "prompt_430": [50.0], "prompt_8000": [50.0]},
            "llamacpp": {"streams_1": [2.0], "prompt_430": [20.0]},
        }
    },
}


def test_the_section_has_ratios_floors_and_shares_of_the_machine() -> None:
    page = sizes_report.section(DATA)
    (ratios,) = [line for line in page.splitlines() if "<br>" in line]
    assert "| 2.20 : 2.00<br>**1.10** **no** | - | 50.0 : 20.0<br>**2.50** | - | - |" in ratios
    assert "1 of 2 floors are kept" in page
    # 2.2 * 4e9 of 10e9; 50 * 12e9 of 1e12, and 50 * 2e9 of attention for the long prompt, which was
    # measured on one side only.
    assert "| 4,000 | 88% | 60% | 70% |" in page


@pytest.mark.parametrize("behind", ["", "\n## Versions and commands\n\n- one\n"])
def test_a_section_takes_the_place_of_the_one_before(behind: str) -> None:
    first = sizes_report.replaced(
        f"# Benchmarks\n\nText.\n{behind}", f"{sizes_report.HEADING}\n\nOne.\n"
    )
    again = sizes_report.replaced(first, f"{sizes_report.HEADING}\n\nTwo.\n")
    assert again.count(sizes_report.HEADING) == 1
    assert "Two." in again
    assert "One." not in again
    assert again.startswith("# Benchmarks\n\nText.\n")
    assert again.count("- one") == bool(behind)
    middle = again + "\n## Last\n\n- last\n"
    assert sizes_report.replaced(middle, f"{sizes_report.HEADING}\n\nX.\n").endswith(
        "## Last\n\n- last\n"
    )
