"""The same model in another form: other products, joined projections, no constant twice.

What a GGUF or an export gives is compact, but OpenVINO takes most of a decode step to unpack
4-bit weights in small groups, and each constant written twice is one more node for every pass of
the compiler. The forms, whose change to the model `scripts/perplexity` measures:

- `a8`: the weights as they are, multiplied by activations of 8 bits (`projection.cpp`);
- `int8`: weights of 8 bits with one scale for each output row, multiplied in float32.

Projections of the same input (queries, keys and values; gate and up) become one product. What
doesn't have this shape is left alone.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openvino as ov

from maestrale.engines.openvino.weights.a8_products import A8Products, a8_projection
from maestrale.engines.openvino.weights.compressed import Float, compressed_weights
from maestrale.engines.openvino.weights.extension import extension
from maestrale.engines.openvino.weights.forms import RepackedFormat, repacked_folder
from maestrale.engines.openvino.weights.int8_products import int8_projection, join
from maestrale.engines.openvino.weights.rewiring import rewire
from maestrale.errors import MaestraleError

GRAPH = "openvino_model.xml"
SMALL = 4096  # bytes; larger constants are weights, and never equal


def save_repacked(folder: Path, form: RepackedFormat) -> Path | None:
    """Write a form of the model in `folder`, once; returns its folder.

    None where it can't be written (a read-only cache, a full disk).
    Raises: EngineError when the extension for the form a8 can't be made.
    """
    done = repacked_folder(folder, form)
    if (done / GRAPH).is_file():
        return done
    _remove_abandoned(done)
    draft = done.with_name(f"{done.name}.{os.getpid()}")
    try:
        draft.mkdir(mode=0o755)  # code is loaded from it: nobody else may write there
        model = ov.Core().read_model(folder / GRAPH)
        repack(model, form, extension(draft) if form == "a8" else None)
        ov.save_model(model, draft / GRAPH, compress_to_fp16=False)
        draft.rename(done)
    except (OSError, RuntimeError):
        shutil.rmtree(draft, ignore_errors=True)
        return done if (done / GRAPH).is_file() else None
    except MaestraleError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return done


def _remove_abandoned(done: Path) -> None:
    """Drafts of processes that were killed: each bears its process's number."""
    for draft in done.parent.glob(f"{done.name}.*"):
        if not Path("/proc", draft.suffix[1:]).exists():
            shutil.rmtree(draft, ignore_errors=True)


def repack(model: Any, form: RepackedFormat, operations: Path | None = None) -> None:
    """Change `model` in place. `operations`: the compiled extension, which the form a8 needs."""
    if operations is None:
        _replace_products(model, int8_projection, join, lambda projection: None)
    else:
        products = A8Products(operations)
        _replace_products(model, a8_projection, products.join, lambda found: found.weights.bits)
        products.link(model)
        products.complete(model)
    _share_constants(model)
    model.validate_nodes_and_infer_types()


def _replace_products(
    model: Any,
    convert: Callable[[Any, Float], Any],
    join: Callable[[list[Any]], None],
    kind: Callable[[Any], object],
) -> None:
    """Convert all weights, and join products of the same input whose weights are of one kind."""
    siblings: dict[object, list[Any]] = defaultdict(list)
    for node in model.get_ordered_ops():
        weights = compressed_weights(node)
        found = None if weights is None else convert(node, weights)
        if found is not None:
            source = node.input_value(0)
            name = source.get_node().get_friendly_name()
            siblings[name, source.get_index(), kind(found)].append(found)
    while siblings:  # in the order of the model; each is freed when it is done
        join(siblings.pop(next(iter(siblings))))


def _share_constants(model: Any) -> None:
    """Keep one of each small constant."""
    kept: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    for node in _small_constants(model):
        output = node.output(0)
        key = (str(node.get_element_type()), tuple(output.get_shape()), node.data.tobytes())
        first = kept.setdefault(key, output)
        if first is not output:
            rewire(output, first)


def _small_constants(model: Any) -> Iterator[Any]:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_byte_size() <= SMALL:
            yield node
