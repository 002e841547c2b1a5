"""What `serve` refuses for the GPU that is here, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maestrale.errors import ModelDoesNotFit
from maestrale.models.fit_cpu import check_gpu
from maestrale.models.gpus import TABLE
from maestrale.models.prepared import PreparedModel

LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
WEIGHTS = 141 * 10**9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """70 billion weights in 16 bits, all of them zero and none on the disk; H100s."""
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(WEIGHTS)
    monkeypatch.setattr("maestrale.models.gpus.nvidia_gpus", lambda: (TABLE["H100"],))
    return tmp_path


@pytest.mark.parametrize(
    ("tensor", "pipeline", "fits"),
    [(1, 1, False), (1, 2, False), (4, None, True), (1, 4, True), (2, 2, True), (None, 4, True)],
)
def test_each_stage_of_a_pipeline_holds_its_layers_alone(
    folder: Path, tensor: int | None, pipeline: int | None, fits: bool
) -> None:
    prepared = PreparedModel(
        name="m",
        context_length=8192,
        vocab_size=128256,
        eos_token_ids=(1,),
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        weights_digest="",
    )
    if fits:
        check_gpu(folder, prepared, 8192, None, tensor, None, pipeline)
        return
    where = "1 x H100 80 GB" + (" for each of 2 stages" if pipeline == 2 else "")
    with pytest.raises(ModelDoesNotFit, match=f"doesn't fit on {where}[:;] "):
        check_gpu(folder, prepared, 8192, None, tensor, None, pipeline)
