"""Run as a script: GGUF → OpenVINO IR, written beside it. `gguf_to_ir.py MODEL.gguf PARENT_PID`.

OpenVINO GenAI converts while it builds a pipeline. That takes the memory of the whole model
and may crash on a damaged file, so it happens in a process of its own that ends with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path


def main(path: str, parent: int) -> int:
    # If maestrale is killed, this goes as well (PR_SET_PDEATHSIG, SIGKILL).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        return 1

    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    # Where all of a build that was killed is removed by the next one.
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as nothing:
        # Its own GGUF tokenizer knows byte-level BPE only, and isn't needed: give it an empty one.
        tokenizer = openvino_genai.Tokenizer(nothing)
        try:
            openvino_genai.ContinuousBatchingPipeline(
                path, tokenizer, scheduler, "CPU", enable_save_ov_model=True
            )
        except (RuntimeError, LookupError, ValueError) as error:
            sys.stderr.write(f"\n{error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
