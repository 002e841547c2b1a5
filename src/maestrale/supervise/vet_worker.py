"""The vetting process: compiles constraints that may be hostile, so that nothing else has to.

    python -m maestrale.supervise.vet_worker --fd N

The first message says which vocabulary, then each Vet gets a Verdict. It has a limit on its
memory; its time is limited by its parent, which kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
from pathlib import Path

import msgspec
from msgspec import structs

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import compile_constraint, grammar_text
from maestrale.errors import MaestraleError
from maestrale.models.vocabulary import Vocabulary, byte_vocabulary, load_vocabulary
from maestrale.supervise.channel import blocking_messages, frames, pack
from maestrale.supervise.leash import take_leash
from maestrale.supervise.messages import Failed, Verdict, Vet, VetterReady, VetterStart

STEPS_TRIED = 16
NICENESS = 5  # a flood of schemas takes the cores last of all from those who wait for tokens


def judge(constraint: Constraint, vocabulary: Vocabulary) -> Verdict:
    """Write it down, compile it and follow it for a few steps.

    Steps take now the lowest and now the highest allowed id, so that they lead into the
    grammar by more than one way.
    """
    try:
        written = grammar_text(constraint)
        compiled = compile_constraint(structs.replace(constraint, written=written), vocabulary)
        for step in range(STEPS_TRIED):
            allowed = compiled.allowed().nonzero()[0]
            if compiled.finished or not len(allowed):
                break
            compiled.accept(int(allowed[-1 if step % 2 else 0]))
    except MaestraleError as error:
        return Verdict(str(error))
    except MemoryError:
        return Verdict("This constraint needs too much memory to compile. Simplify it.")
    return Verdict(None, written)


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes of address space beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(sock: socket.socket) -> None:
    def send(message: msgspec.Struct) -> None:
        for frame in frames([pack(message)]):
            sock.sendall(frame)

    incoming = blocking_messages(sock, VetterStart | Vet)
    first = next(incoming, None)
    if first is None:
        return  # the parent is gone
    start: VetterStart = first[0]
    try:
        folder = start.model_dir
        vocabulary = load_vocabulary(Path(folder)) if folder else byte_vocabulary()
        judge(Constraint("regex", "a"), vocabulary)  # builds what is built once
    except MaestraleError as error:
        send(Failed(str(error)))
        return
    with contextlib.suppress(OSError):  # no /proc: the time limit alone holds
        limit_memory(start.memory)
    send(VetterReady())
    for messages in incoming:
        for message in messages:
            send(judge(message.constraint, vocabulary))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    sock = take_leash(parser.parse_args().fd, "maestrale-vet")
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # the parent is gone
        serve(sock)


if __name__ == "__main__":
    main()
