"""The kernel's C interface (`kernel/maestrale.h`) through ctypes, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from maestrale.errors import EngineError, ModelError

ABI = 2
ERROR_SIZE = 1024
floats = POINTER(c_float)
ints = POINTER(c_int32)

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "clipped_swiglu": 2}
SOFTMAX_THEN_TOP, TOP_THEN_SOFTMAX = 0, 1
LEVELS = ("scalar", "avx2", "avx512", "amx", "neon", "i8mm")


class RopeStruct(Structure):
    """`mst_rope`."""

    _fields_ = [("dims", c_int32), ("scale", c_float), ("inverse_frequencies", floats)]


class LayerStruct(Structure):
    """`mst_layer`."""

    _fields_ = [
        *((name, floats) for name in ("attention_norm", "post_attention_norm", "mlp_norm")),
        *((name, floats) for name in ("post_mlp_norm", "query_norm", "key_norm")),
        *((name, c_int32) for name in ("whole_head_norm", "window", "rope")),
        *((name, c_void_p) for name in ("query", "key", "value", "output")),
        *((name, floats) for name in ("query_bias", "key_bias", "value_bias", "output_bias")),
        ("sinks", floats),
        *((name, c_void_p) for name in ("gate", "up", "down")),
        *((name, floats) for name in ("gate_bias", "up_bias", "down_bias", "shared_router")),
        *((name, floats) for name in ("router", "router_bias")),
        *((name, POINTER(c_void_p)) for name in ("expert_gate", "expert_up", "expert_down")),
        *((name, floats) for name in ("expert_gate_bias", "expert_up_bias", "expert_down_bias")),
    ]


class ModelStruct(Structure):
    """`mst_model`."""

    _fields_ = [
        *((name, c_int32) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim")),
        ("vocab", c_int32),
        *((name, c_float) for name in ("norm_epsilon", "embedding_scale", "residual_scale")),
        *((name, c_float) for name in ("logit_scale", "logit_soft_cap", "attention_scale")),
        ("attention_soft_cap", c_float),
        ("temperatures", floats),
        *((name, c_int32) for name in ("temperature_length", "temperature_count", "activation")),
        *((name, c_float) for name in ("clip_alpha", "clip_limit")),
        *((name, c_int32) for name in ("experts", "experts_used", "gating", "renormalise")),
        ("expert_scale", c_float),
        ("rope_count", c_int32),
        ("ropes", POINTER(RopeStruct)),
        *((name, c_void_p) for name in ("embedding", "logits")),
        *((name, floats) for name in ("logits_bias", "final_norm")),
        ("layer", POINTER(LayerStruct)),
    ]


class BatchStruct(Structure):
    """`mst_batch`."""

    _fields_ = [
        *((name, c_int32) for name in ("tokens", "sequences")),
        *((name, c_void_p) for name in ("token_ids", "past", "begins", "blocks", "block_begins")),
        ("rows", c_int32),
        ("wanted_rows", c_void_p),
        ("hidden_rows", c_int32),
    ]


_ERROR = (c_char_p, c_size_t)
# name → what it returns, what it takes
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "mst_abi": (c_int32, ()),
    "mst_arithmetic": (c_char_p, ()),
    "mst_has_level": (c_int32, (c_int32,)),
    "mst_best_level": (c_int32, ()),
    "mst_level_name": (c_char_p, (c_int32,)),
    "mst_pool_open": (c_void_p, (c_int32, *_ERROR)),
    "mst_pool_close": (None, (c_void_p,)),
    "mst_pool_enlarge": (c_int64, (c_void_p, c_int64)),
    "mst_matrix_pack": (
        c_void_p,
        (c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int64, ints, *_ERROR),
    ),
    "mst_matrix_free": (None, (c_void_p,)),
    "mst_matrix_bytes": (c_int64, (c_void_p,)),
    "mst_packed_bytes": (c_int64, (c_int32, c_int64, c_int64)),
    "mst_type_is_exact": (c_int32, (c_int32,)),
    "mst_matrix_digest": (ctypes.c_uint64, (c_void_p,)),
    "mst_matrix_unpack": (c_int32, (c_void_p, c_int64, c_int64, floats)),
    "mst_matrix_multiply": (
        c_int32,
        (c_void_p, c_int32, c_void_p, floats, c_int64, floats, c_int32),
    ),
    "mst_decoder_open": (c_void_p, (c_void_p, c_int32, POINTER(ModelStruct), c_int32, *_ERROR)),
    "mst_decoder_close": (None, (c_void_p,)),
    "mst_block_bytes": (c_int64, (c_void_p,)),
    "mst_cache_open": (c_int32, (c_void_p, c_int32, *_ERROR)),
    "mst_copy_block": (None, (c_void_p, c_int32, c_int32)),
    "mst_step": (c_int32, (c_void_p, POINTER(BatchStruct), c_void_p, c_void_p, *_ERROR)),
}


class Library:
    """The loaded kernel: its functions under their C names, typed."""

    def __init__(self, path: Path) -> None:
        """Raises: EngineError where the file is no kernel, or another version's."""
        try:
            self._library = ctypes.CDLL(str(path))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise EngineError(f"{path} is no kernel of this maestrale: {error}") from error
        abi = self._library.mst_abi()
        if abi != ABI:
            raise EngineError(
                f"{path} is the kernel of another version of maestrale (interface {abi}; this one "
                f"has {ABI}). Delete it; it will be made anew."
            )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def level(self, name: str | None) -> int:
        """The number of an instruction set, the best one where none is named.

        Raises: EngineError where this library or CPU lacks it.
        """
        if name is None:
            return int(self.mst_best_level())
        if name not in LEVELS or not self.mst_has_level(LEVELS.index(name)):
            has = [level for i, level in enumerate(LEVELS) if self.mst_has_level(i)]
            raise EngineError(
                f"This CPU, or the kernel, has no instruction set {name!r}, but {', '.join(has)}."
            )
        return LEVELS.index(name)

    @property
    def arithmetic(self) -> str:
        """The version of the arithmetic, for fingerprints."""
        return str(self.mst_arithmetic().decode())


def model_error(buffer: ctypes.Array[ctypes.c_char], what: str) -> ModelError:
    """The kernel's sentence in `buffer`, or that it gave none."""
    said = buffer.value.decode("utf-8", "replace").strip()
    return ModelError(f"{what}: {said or 'the kernel gives no reason'}")
