"""Loads damaged models in the CPU engine's kernel, compiled with AddressSanitizer.

Takes the tiny models of every family (tests/golden), changes bytes of their heads or weights, cuts
them, swaps types and shapes, opens what comes out and computes steps with it, valid ones and
others. What is refused must be refused with a ModelError or an EngineError. Ends with 1, and keeps
the file, where anything else happens: another exception, or a report of AddressSanitizer. Needs
g++ with libasan; compiling the kernel so takes minutes.
"""

from __future__ import annotations

import argparse
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "src")]

import numpy as np  # noqa: E402

from maestrale.config.paths import default_cache_dir  # noqa: E402
from maestrale.engines.cpu.decoder import Batch, Decoder, load_decoder  # noqa: E402
from maestrale.engines.cpu.kernel import build, compilers  # noqa: E402
from maestrale.engines.cpu.library import LEVELS, Library  # noqa: E402
from maestrale.errors import EngineError, ModelError  # noqa: E402
from maestrale.models.gguf_file import read_gguf  # noqa: E402
from tiny_families import TINY  # noqa: E402
from tiny_models import VOCAB, write_folder  # noqa: E402

SANITIZE = ("-fsanitize=address", "-g1", "-O1", "-w")
BLOCKS = 3
KEPT = Path(tempfile.gettempdir()) / "fuzz-models"


def compiled() -> Path:
    """The kernel with AddressSanitizer, from the cache where it was compiled before."""
    library = default_cache_dir() / "fuzz" / build.name()
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        _compile(Path(scratch), library)
    return library


def _compile(folder: Path, library: Path) -> None:
    flags = [flag for flag in build.FLAGS if not flag.startswith(("-O", "-fno-sanitize"))]
    compiler = compilers.Compiler(("g++",))

    def one(entry: tuple[Path, str]) -> Path:
        path, level = entry
        made = folder / f"{path.stem}.o"
        command = [
            "g++",
            *flags,
            *SANITIZE,
            *compiler.flags(level),
            "-c",
            str(path),
            "-o",
            str(made),
        ]
        subprocess.run(command, check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        objects = list(executor.map(one, build.sources(compilers.CompileTarget.here())))
    subprocess.run(["g++", *build.LINK_FLAGS, *SANITIZE, "-o", library, *objects], check=True)


def _found(name: str) -> str:
    """Where g++ has one of its libraries."""
    asked = ["g++", f"-print-file-name={name}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def damaged(dice: random.Random, path: Path) -> None:
    """Change a model's file at random: a GGUF file, or one of safetensors."""
    content = bytearray(path.read_bytes())
    head = _head(path)
    kind = dice.randrange(6)
    if kind == 0:  # cut
        del content[dice.randrange(len(content)) :]
    elif kind == 1 and path.suffix == ".gguf":  # another type for some tensor
        names = [name.encode() for name in read_gguf(path).tensors]
        name = dice.choice(names)
        at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        dimensions = struct.unpack_from("<I", content, at)[0]
        struct.pack_into("<I", content, at + 4 + 8 * dimensions, dice.randrange(45))
    elif kind == 2:  # weights
        for _ in range(dice.randrange(1, 200)):
            content[dice.randrange(head, len(content))] = dice.choice((0, 1, 124, 127, 255))
    else:  # the head
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(min(8, head - 1), head)
            content[at] = dice.choice((0, 1, 255, content[at] ^ 1 << dice.randrange(8)))
    path.write_bytes(content)


def _head(path: Path) -> int:
    if path.suffix == ".gguf":
        return min(tensor.offset for tensor in read_gguf(path).tensors.values())
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def stepped(dice: random.Random, decoder: Decoder) -> None:
    """Steps of all kinds: what the kernel takes, and what it must refuse."""
    decoder.open_cache(BLOCKS)
    for _ in range(3):
        count = dice.randrange(1, 40)
        past = dice.choice((0, 0, 5, 31))
        blocks = list(range(-(-(past + count) // 32)))
        fields = {
            "token_ids": [dice.randrange(VOCAB) for _ in range(count)],
            "past": [past],
            "begins": [0, count],
            "blocks": blocks,
            "block_begins": [0, len(blocks)],
            "logit_rows": [count - 1],
        }
        if dice.random() < 0.5:
            wrong = fields[dice.choice(list(fields))]
            wrong[dice.randrange(len(wrong))] = dice.choice((-1, 1 << 30, -(1 << 31), 33, 400))
        batch = Batch(**{name: np.array(values, np.int32) for name, values in fields.items()})
        try:
            decoder.step(batch)
        except EngineError:
            continue
    decoder.copy_block(0, BLOCKS - 1)


def once(dice: random.Random, library: Path, folder: Path) -> bool:
    """Try one damaged model; whether it was served."""
    model = dice.choice(TINY)
    if dice.random() < 0.7:
        path = target = folder / "model.gguf"
        packed = ROOT / "tests" / "golden" / f"{model.name}.gguf.xz"
        target.write_bytes(lzma.decompress(packed.read_bytes()))
    else:
        path = write_folder(model, folder / "model", dice.choice(("F32", "BF16")))
        target = path / "model.safetensors"
    if dice.random() < 0.95:
        damaged(dice, target)
    levels = [name for i, name in enumerate(LEVELS) if Library(library).mst_has_level(i)]
    try:
        decoder = load_decoder(
            path, library, context=64, threads=2, level=dice.choice(levels), exact=False
        )
    except (ModelError, EngineError):
        return False
    try:
        stepped(dice, decoder)
    finally:
        decoder.close()
    return True


def work(seconds: float, seed: int, library: Path) -> None:
    """The loop, in the process that has the sanitizer loaded."""
    end, tried, served = time.monotonic() + seconds, 0, 0
    shutil.rmtree(KEPT, ignore_errors=True)
    while time.monotonic() < end:
        KEPT.mkdir(exist_ok=True)
        (KEPT / "seed").write_text(str(seed + tried))
        served += once(random.Random(seed + tried), library, KEPT)
        shutil.rmtree(KEPT)
        tried += 1
    print(f"{tried} damaged models: {served} were served all the same, the others refused")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", nargs="?", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library is not None:
        work(given.seconds, given.seed, given.library)
        return
    command = [sys.executable, __file__, str(given.seconds), "--seed", str(given.seed)]
    environment = os.environ | {
        # The C++ library as well: AddressSanitizer looks for its functions at the start.
        "LD_PRELOAD": f"{_found('libasan.so')} {_found('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    done = subprocess.run([*command, "--library", compiled()], env=environment, check=False)
    if done.returncode:
        print(f"Failed. The model is in {KEPT}, the seed of its try in {KEPT / 'seed'}.")
        sys.exit(1)


if __name__ == "__main__":
    main()
