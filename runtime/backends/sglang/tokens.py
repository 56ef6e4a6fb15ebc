"""The tokenizer of a served model: from a folder, from where the server has it, or from the hub."""

import json
import logging
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ...calls import Tokenizer
from ...errors import InvalidConfig, InvalidInput, TenterError
from ...tokenizer import Detokenizer, HFTokenizer
from ..http import Client
from .info import ServerInfo

log = logging.getLogger(__name__)
HUB_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
PROBE = 'A probe: 12 + 30 = 42;\n\tnaïve café, 東京 {"key": [1, 2.5]} <b>x</b>'


class ModelTokenizer(Tokenizer, Protocol):
    """A tokenizer that also makes text of tokens as they come."""

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one answer."""
        ...


def open_tokenizer(given: str | Path | None, info: ServerInfo, where: str) -> HFTokenizer:
    """The tokenizer of the model at `where`; `given` is a folder or a hub id.

    Raises InvalidInput, naming the option, where it cannot be had.
    """
    if given is not None:
        return HFTokenizer(_folder(str(given), f"tokenizer={str(given)!r}"))
    path = info.tokenizer_path or info.model_path
    if not path:
        raise InvalidInput(f"{where}: the server does not name its tokenizer; set tokenizer=FOLDER")
    return HFTokenizer(_folder(path, f"{where}: the server's tokenizer {path!r}"))


def _folder(name: str, what: str) -> Path:
    """`name` as a folder, or what the hub has under that id."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    cure = "set tokenizer=FOLDER, with the tokenizer.json of the served model in it"
    if folder.is_absolute() or folder.exists() or name.count("/") > 1:
        raise InvalidInput(f"{what} has no tokenizer.json on this machine; {cure}")
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    except ModuleNotFoundError:
        raise InvalidInput(
            f"{what} is no folder here, and the `huggingface_hub` package that could fetch it is "
            f"not installed; {cure}"
        ) from None
    try:
        found = Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # it raises errors of many libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{what} cannot be fetched from the hub: {reason}; {cure}") from error
    if not (found / "tokenizer.json").is_file():
        raise InvalidInput(f"{what} has no tokenizer.json on the hub; {cure}")
    return found


def vocabulary(tokenizer: object) -> int | None:
    """One more than the largest token id that the model has; None if it cannot be told.

    A token id outside of the vocabulary ends an SGLang server for all its clients.
    """
    if not isinstance(tokenizer, HFTokenizer):
        return None
    config = tokenizer.folder / "config.json"
    if config.is_file():
        known = msgspec.json.decode(config.read_bytes(), type=_ModelConfig)
        size = known.vocab_size or (known.text_config and known.text_config.vocab_size)
        if size is not None:
            return size
    raw = json.loads(tokenizer.json)
    words: dict[str, int] | list[Any] = raw["model"]["vocab"]
    largest = max(words.values(), default=-1) if isinstance(words, dict) else len(words) - 1
    added: list[dict[str, Any]] = raw.get("added_tokens") or []
    return max([largest, *(token["id"] for token in added)]) + 1


class _TextConfig(msgspec.Struct):
    vocab_size: int | None = None


class _ModelConfig(_TextConfig):
    text_config: _TextConfig | None = None


class _Encoded(msgspec.Struct):
    tokens: list[int] | None = None


async def compare(tokenizer: ModelTokenizer, client: Client, *, given: bool) -> None:
    """Ask the server to encode a text as a check that `tokenizer` is that of its model.

    Raises InvalidConfig for another one that was `given`; one that the server itself named is
    only warned of. A server that does not encode is believed.
    """
    try:
        answer = await client.post(
            "/tokenize", {"prompt": PROBE, "add_special_tokens": False}, timeout_s=10.0
        )
        theirs = msgspec.convert(answer, _Encoded).tokens
    except (TenterError, msgspec.ValidationError):
        return
    if theirs is None or theirs == tokenizer.encode(PROBE):
        return
    message = f"{client.url}: the server's tokenizer encodes a text in another way than ours"
    if given:
        raise InvalidConfig(f"{message}; set tokenizer= to the folder of the model that it serves")
    log.warning("%s; set tokenizer=FOLDER if answers make no sense", message)
