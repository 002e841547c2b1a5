"""The CPU engine: a step loop of our own over OpenVINO's paged-attention model.

graph.py       the compiled model and its KV cache tensors: token rows in, logits out
kv_cache.py    which block of the KV cache belongs to whom; the prefix cache
scheduler.py   which sequences run in the next step
generation.py  one sequence's state beyond its tokens: sampler, constraint, finish
cpu.py         the cores this process may use, and what the CPU is
engine.py      the Engine: the step loop's thread, and the bridge to asyncio
"""
