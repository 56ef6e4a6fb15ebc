"""What is refused at the door: requests that can never be answered."""

from ..calls import Request
from ..errors import CallFailed
from .config import ModelConfig


def check(request: Request, config: ModelConfig, kv_tokens: int) -> None:
    """Raises CallFailed, with the numbers, if `request` fits neither the model nor the cache."""
    prompt, choices = len(request.token_ids), request.choices
    if prompt == 0:
        raise CallFailed("the prompt is empty")
    if choices is not None and not all(choices or ((),)):
        raise CallFailed("choices must be given, each of at least one token")
    follow = 1 if choices is None else max(map(len, choices))
    if choices is None and request.sampling.max_tokens <= 0:
        follow = 0  # only the prompt's KV is wanted
    if prompt + follow > config.context:
        raise CallFailed(
            f"the prompt has {prompt} tokens; with {follow} to follow it does not fit the "
            f"model's context of {config.context} tokens"
        )
    follow = follow if choices is None else sum(map(len, choices))
    if prompt + follow > kv_tokens:
        raise CallFailed(
            f"the prompt has {prompt} tokens; with {follow} to follow it does not fit the "
            f"KV cache of {kv_tokens} tokens"
        )
    for ids in (request.token_ids, *(choices or ())):
        if min(ids) < 0 or max(ids) >= config.vocab:
            raise CallFailed(f"a token id is outside of the model's vocabulary of {config.vocab}")
