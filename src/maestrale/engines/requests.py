"""What every engine asks of a request before it runs it."""

from __future__ import annotations

from maestrale.engines.base import EngineInfo, GenerationRequest
from maestrale.errors import EngineError

MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 2_000_000  # of one prompt in all: they travel in one message


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Raises: EngineError that says why this request can't be run on this engine."""
    check_embedding(request, info)
    sampling = request.sampling
    longest = len(request.prompt) + request.max_tokens
    scored = request.prompt_logprobs
    least = 0 if request.embed or scored is not None else 1
    biased = [token for token, _ in sampling.logit_bias]
    tokens = (*request.prompt, *request.stop_token_ids, *request.forced, *biased)
    fault = ""
    if not request.prompt:
        fault = "the prompt is empty"
    elif request.max_tokens < least:
        fault = f"max_tokens must be at least {least}"
    elif longest > info.max_model_len:
        fault = (
            f"the prompt's {len(request.prompt)} tokens and max_tokens {request.max_tokens} "
            f"make {longest}, and the limit is {info.max_model_len}"
        )
    elif not 0 <= min(tokens) <= max(tokens) < info.vocab_size:
        fault = f"a token id lies outside the vocabulary of {info.vocab_size} tokens"
    elif max(request.logprobs or 0, scored or 0) > MAX_TOP_LOGPROBS:
        fault = f"at most {MAX_TOP_LOGPROBS} top logprobs can be given"
    elif scored is not None and len(request.prompt) * (scored + 1) > MAX_PROMPT_LOGPROBS:
        fault = (
            f"prompt_logprobs {scored} of {len(request.prompt)} tokens is more than "
            f"{MAX_PROMPT_LOGPROBS} numbers; ask for fewer"
        )
    elif len(request.forced) > request.max_tokens:
        fault = f"{len(request.forced)} forced tokens exceed max_tokens {request.max_tokens}"
    elif sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        fault = "temperature must not be negative, and top_p must lie in (0, 1]"
    elif sampling.repetition_penalty <= 0:
        fault = "repetition_penalty must be positive"
    if fault:
        raise EngineError(f"This request can't be run: {fault}.")


def check_embedding(request: GenerationRequest, info: EngineInfo) -> None:
    """Raises: EngineError for an embedding that this engine can't make."""
    if not request.embed:
        return
    if "embed" not in info.features:
        raise EngineError(f"The engine {info.engine} makes no embeddings as it was started.")
    if request.max_tokens or request.prompt_logprobs is not None:
        raise EngineError(
            "An embedding is of a prompt alone: max_tokens must be 0, without prompt_logprobs."
        )
