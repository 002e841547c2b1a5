"""GGUF files with other metadata or tensors than they had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Q8_0 = gguf.GGMLQuantizationType.Q8_0
Tensors = dict[str, np.ndarray]
Change = Callable[[dict[str, Any], Tensors], None]


def rewritten(source: Path, target: Path, change: Change) -> Path:
    """A GGUF file with other metadata or tensors: `change` alters both in place.

    A new tensor of bytes is one of Q8_0.
    """
    reader = gguf.GGUFReader(source)
    fields = {
        name: (field.types, field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    values = {name: content for name, (_, content) in fields.items()}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    change(values, tensors)
    writer = gguf.GGUFWriter(target, values.pop("general.architecture"))
    for name, value in values.items():
        types = fields[name][0] if name in fields else None
        if isinstance(value, list):
            writer.add_array(name, value)
        elif types is not None and value == fields[name][1]:
            writer.add_key_value(name, value, types[0])
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_string(name, value)
    for name, data in tensors.items():
        packed = data.dtype == np.uint8  # its values are in blocks
        writer.add_tensor(name, data, raw_dtype=kinds.get(name, Q8_0) if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
