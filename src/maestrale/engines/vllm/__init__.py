"""The engine for GPUs: vLLM's AsyncLLM, token ids in, token ids out.

arguments.py    our settings → vLLM's engine arguments
parameters.py   one request → vLLM's sampling parameters
pooling.py      embeddings, by vLLM's pooling runner
environment.py  the variables that vLLM reads, set before it is imported
executors.py    which of its executors it is given
forced.py       a logits processor: forced tokens come first
leash.py        vLLM's own processes never outlive the engine process
leash_ray.py    nor do those that it starts on other nodes
counters.py     vLLM's statistics → EngineStats
engine.py       the Engine: puts these together

vLLM is an extra of this package (`scripts/extra vllm`); only engine.py, forced.py, leash.py,
leash_ray.py and counters.py import it, and only when this engine is started.
"""
