"""A model becomes one operation only where attention is all that stands between its products.

What the operation computes is in `test_attention.py`, and with a real model in
`contract/engines/test_whole.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13
from openvino._offline_transformations import paged_attention_transformation

from maestrale.engines.openvino.graph import GRAPH
from maestrale.engines.openvino.weights.chain import Chain, Heads
from maestrale.engines.openvino.weights.decoder import ATTENTION, decoder
from maestrale.engines.openvino.weights.repack import save_repacked


@pytest.fixture(scope="module")
def repacked(prepared_model: Path, kernel: Path) -> Path:
    folder = save_repacked(prepared_model, "a8")
    assert folder is not None
    return folder


@pytest.fixture
def paged(repacked: Path, kernel: Path) -> ov.Model:
    core = ov.Core()
    core.add_extension(kernel)
    model = core.read_model(repacked / GRAPH)
    paged_attention_transformation(model)
    return model


def attentions(model: ov.Model) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == ATTENTION]


def replaced(model: ov.Model, index: int, value: Any) -> ov.Model:
    """With another constant at this input of the last layer's attention."""
    node = attentions(model)[-1]
    constant = opset13.constant(value)
    node.input(index).replace_source_output(constant.output(0))
    return model


@pytest.mark.model
def test_all_layers_are_one_operation(paged: ov.Model, kernel: Path) -> None:
    before = len(paged.get_ordered_ops())
    found = decoder(paged, kernel)
    assert len(paged.get_ordered_ops()) == before  # as it was
    assert found is not None
    result = found.model.output("logits").get_node().input_value(0).get_node()
    chain = Chain.of(result)
    assert found.layers == 30
    assert found.block_bytes == 3 * 4608  # heads, and what `attention.hpp` lays out for each
    assert (
        chain.heads == found.heads == Heads(queries=9, kept=3, width=64, scale=0.125, turned=True)
    )
    assert sum(stage.before == "attention" for stage in chain.stages) == 30
    assert chain.outputs == [(len(chain.stages) - 1, 49152)]


@pytest.mark.model
def test_a_sliding_window_is_left_to_openvino(paged: ov.Model, kernel: Path) -> None:
    assert decoder(replaced(paged, 10, np.int32(64)), kernel) is None


@pytest.mark.model
def test_another_scale_in_one_layer_is_left_to_openvino(paged: ov.Model, kernel: Path) -> None:
    assert decoder(replaced(paged, 9, np.float32(0.5)), kernel) is None


def test_a_model_without_attention_has_none(kernel: Path) -> None:
    x = opset13.parameter([-1, 1, 8], ov.Type.f32)
    result = opset13.relu(x)
    result.output(0).get_tensor().set_names({"logits"})
    assert decoder(ov.Model([result], [x], "plain"), kernel) is None
