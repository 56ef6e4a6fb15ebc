"""The cl100k tokenizer, offline: its vocabulary as litellm ships it, run by `tokenizers`.

`pip install --no-deps litellm` brings the file; TENTER_CL100K names it where it lies elsewhere.
"""

import base64
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# OpenAI's cache name of the vocabulary, and the words that its merges stay within.
_NAME = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Cl100k:
    """Texts to token ids."""

    def __init__(self) -> None:
        self._tokenizer = _build(_ranks(_find()))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(one) for one in self.ids(texts)]


def _find() -> Path:
    given = os.environ.get("TENTER_CL100K")
    if given:
        return Path(given)
    spec = find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "litellm_core_utils" / "tokenizers" / _NAME
        if path.exists():
            return path
    sys.exit("no cl100k vocabulary: `pip install --no-deps litellm`, or set TENTER_CL100K to it")


def _ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _build(ranks: dict[bytes, int]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import BPE

    names = _byte_names()
    spelled = {token: "".join(map(names.__getitem__, token)) for token in ranks}
    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    merges.sort()
    model = BPE(
        {spelled[token]: rank for token, rank in ranks.items()},
        [(spelled[left], spelled[right]) for *_, left, right in merges],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_names() -> list[str]:
    """The letter that stands for each byte in byte-level BPE (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
