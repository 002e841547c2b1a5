"""The forms of a model's weights that are made here: where each is kept, and which can be made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from maestrale.engines.openvino.cpu import available_memory
from maestrale.engines.openvino.weights.extension import unavailable

RepackedFormat = Literal["a8", "int8"]

# What a form takes while it is made and tried beside the original: a multiple of the file with the
# weights, and bytes besides; then how much of the free memory that may be. Weights of 8 bits go on
# to take twice the original's memory for as long as they serve; those of a8 take about as much.
NEEDED: dict[RepackedFormat, tuple[float, int, float]] = {
    "a8": (4.0, 256 << 20, 0.75),
    "int8": (2.0, 0, 0.25),
}
LAYOUTS: dict[RepackedFormat, int] = {"a8": 3, "int8": 1}  # another number: made anew
ON_DISK: dict[RepackedFormat, float] = {"a8": 1.5, "int8": 2.0}  # multiples of the same


def repacked_folder(folder: Path, form: RepackedFormat) -> Path:
    """Where a form of a prepared model lies. Its name counts the versions of it."""
    return folder / f"{form}-{LAYOUTS[form]}"


def without_kernel(folder: Path) -> str:
    """Why the model in `folder` can't have the form a8, and what to do; empty where it can."""
    return unavailable(repacked_folder(folder, "a8"))


def left_out(folder: Path) -> dict[RepackedFormat, str]:
    """The forms that are not tried for the model in `folder`, with the reason as a clause."""
    weights = (folder / "openvino_model.bin").stat().st_size
    memory = available_memory()
    reasons: dict[RepackedFormat, str] = {}
    for form, (multiple, besides, share) in NEEDED.items():
        made = (repacked_folder(folder, form) / "openvino_model.xml").is_file()
        if multiple * weights + besides >= share * memory:
            reasons[form] = "it takes too much of the memory that is free"
        elif not os.access(folder, os.W_OK):
            reasons[form] = f"{folder} can't be written"
        elif not made and shutil.disk_usage(folder).free < ON_DISK[form] * weights:
            reasons[form] = f"there is too little room in {folder}"
    if reason := without_kernel(folder):
        reasons["a8"] = reason
    return reasons
