"""The tokenizer of a Hugging Face model folder: text, chats and tool calls to token ids and back.

Reads tokenizer.json with the `tokenizers` library and renders the model's own chat template with
Jinja2 in a sandbox; transformers is not needed.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .calls import Message, ToolSpec
from .errors import InvalidInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Tokenizer

_CACHED_SEGMENTS = 8192
_COUNTED_AT_ONCE = 4096  # texts, whose encodings are held together
_MARK = "\u2063mark\u2063"  # stands for an assistant's text when the template is probed


class Detokenizer(Protocol):
    """Text of tokens as they come."""

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is unfinished."""
        ...

    def extend(self, tokens: Sequence[int]) -> str:
        """The text that several tokens complete."""
        ...


class HFTokenizer:
    """Implements `calls.Tokenizer` for the model in `folder`.

    Raises InvalidInput if the folder has no tokenizer.json, or `chat` is asked of a model without
    a chat template. Texts between special tokens are encoded once and remembered, so that many
    prompts over one system message cost little more than their own part.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.json = _read(self.folder / "tokenizer.json", "tokenizer.json")
        self._tokenizer = _load(self.json)
        self._config: dict[str, Any] = _read_json(self.folder / "tokenizer_config.json")
        self._template = _chat_template(self.folder, self._config)
        self._special = _special_tokens(self.json)
        self._split = _splitter(self.json)
        self._segment = lru_cache(maxsize=_CACHED_SEGMENTS)(self._encode)
        self._bytes = _byte_pieces(self.json, self._tokenizer, self._special)
        self.eos_ids = self._find_eos_ids()
        self.end_of_turn_ids = self._find_end_of_turn()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised, none added."""
        if self._split is None:
            return list(self._encode(text))
        ids: list[int] = []
        for part in self._split.split(text):
            if part:
                ids += self._segment(part)
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each of several texts; half a surrogate pair counts as a question mark."""
        counts: list[int] = []
        for at in range(0, len(texts), _COUNTED_AT_ONCE):
            part = texts[at : at + _COUNTED_AT_ONCE]
            plain = [text.encode("utf-8", "replace").decode() for text in part]
            encoded = self._tokenizer.encode_batch(plain, add_special_tokens=False)
            counts += (len(one.ids) for one in encoded)
        return counts

    def decode(self, token_ids: list[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def chat(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int]:
        """Token ids of a chat, ready for the assistant's next turn."""
        return self.encode(self.render(messages, tools))

    def follow(self, messages: list[Message], tools: tuple[ToolSpec, ...] = ()) -> list[int] | None:
        """Token ids behind an assistant's text: its end, `messages`, the next turn's opening."""
        turns = [Message("user", "x"), Message("assistant", _MARK), *messages]
        try:
            _, found, rest = self.render(turns, tools).partition(_MARK)
        except InvalidInput:
            return None
        return self.encode(rest) if found else None

    def render(
        self, messages: list[Message], tools: tuple[ToolSpec, ...] = (), *, ready: bool = True
    ) -> str:
        """Text of a chat by the model's template; `ready`: the assistant's next turn is opened."""
        if self._template is None:
            raise InvalidInput(f"{self.folder}: the model has no chat template; use plain prompts")
        try:
            return self._template.render(
                messages=[_message(message) for message in messages],
                tools=[_tool(tool) for tool in tools] or None,
                add_generation_prompt=ready,
                bos_token=self._token_text("bos_token"),
                eos_token=self._token_text("eos_token"),
            )
        except TemplateError as error:
            raise InvalidInput(f"{self.folder}: the chat template refused: {error}") from error

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer, for one answer."""
        if self._bytes is not None:
            return _ByteDetokenizer(self._bytes)
        return _WindowDetokenizer(self._tokenizer)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _token_text(self, name: str) -> str:
        token: str | dict[str, str] = self._config.get(name) or ""
        return token["content"] if isinstance(token, dict) else token

    def _find_eos_ids(self) -> frozenset[int]:
        """generation_config.json, config.json, or the tokenizer's own end token."""
        for name in ("generation_config.json", "config.json"):
            ids: list[int] | int | None = _read_json(self.folder / name).get("eos_token_id")
            if ids is not None:
                return frozenset(ids if isinstance(ids, list) else [ids])
        token = self._tokenizer.token_to_id(self._token_text("eos_token"))
        return frozenset() if token is None else frozenset([token])

    def _find_end_of_turn(self) -> tuple[int, ...]:
        """What the template puts behind an assistant's text, up to the first end token."""
        fallback = tuple(sorted(self.eos_ids)[:1])
        if self._template is None:
            return fallback
        turns = [Message("user", "x"), Message("assistant", _MARK)]
        try:
            _, found, rest = self.render(turns, ready=False).partition(_MARK)
        except InvalidInput:
            return fallback
        ids = self.encode(rest) if found else []
        ends = [place for place, token in enumerate(ids) if token in self.eos_ids]
        return tuple(ids[: ends[0] + 1]) if ends else fallback


class _ByteDetokenizer:
    """For byte-level vocabularies: bytes of each token, decoded as UTF-8 as they come."""

    __slots__ = ("_open", "_pieces")

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._open = b""  # of an unfinished character

    def push(self, token: int) -> str:
        return self.extend((token,))

    def extend(self, tokens: Sequence[int]) -> str:
        pieces = self._pieces
        known = [pieces[token] for token in tokens if token < len(pieces)]
        data = b"".join((self._open, *known))
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._open = data[used:]
        return text


class _WindowDetokenizer:
    """For any vocabulary: decode a short window twice, and hand out the difference."""

    def __init__(self, tokenizer: "_Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._told = 0  # leading tokens of the window whose text was handed out

    def push(self, token: int) -> str:
        self._window.append(token)
        before = self._text(self._window[: self._told])
        text = self._text(self._window)
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return text[len(before) :]

    def extend(self, tokens: Sequence[int]) -> str:
        return "".join(map(self.push, tokens))

    def _text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


def _load(text: str) -> "_Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise InvalidInput(
            "reading a tokenizer needs the `tokenizers` package: pip install 'tenter[embedded]'"
        ) from None
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(file: Path, what: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{file.parent} has no {what}") from None


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _special_tokens(text: str) -> dict[int, str]:
    added: list[dict[str, Any]] = json.loads(text).get("added_tokens") or []
    return {token["id"]: token["content"] for token in added if token.get("special")}


def _splitter(text: str) -> re.Pattern[str] | None:
    """A pattern that cuts a text at its special tokens, where cutting cannot change the ids.

    It cannot when a token takes no blanks along and nothing is put in front of a text.
    """
    raw: dict[str, Any] = json.loads(text)
    if raw.get("normalizer") and raw["normalizer"].get("type") != "NFC":
        return None
    if not _byte_level(raw.get("pre_tokenizer")):
        return None
    added: list[dict[str, Any]] = raw.get("added_tokens") or []
    special = [token for token in added if token.get("special")]
    greedy = ("lstrip", "rstrip", "single_word")
    if not special or any(token.get(flag) for token in special for flag in greedy):
        return None
    names = sorted((re.escape(token["content"]) for token in special), key=len, reverse=True)
    return re.compile(f"({'|'.join(names)})")


def _byte_level(stage: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer works on bytes and adds no blank in front."""
    if not stage:
        return False
    if stage["type"] == "Sequence":
        stages: list[dict[str, Any]] = stage.get("pretokenizers") or []
        return any(map(_byte_level, stages))
    return stage["type"] == "ByteLevel" and not stage.get("add_prefix_space")


def _byte_pieces(text: str, tokenizer: "_Tokenizer", special: dict[int, str]) -> list[bytes] | None:
    """Bytes of each token id of a byte-level vocabulary; None for another kind."""
    decoder: dict[str, Any] = json.loads(text).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return None
    byte_of = {char: byte for byte, char in _byte_alphabet()}
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        if index in special:
            continue
        known = all(char in byte_of for char in token)
        pieces[index] = bytes(byte_of[char] for char in token) if known else token.encode()
    return pieces


def _byte_alphabet() -> Iterator[tuple[int, str]]:
    """GPT-2's printable stand-in for each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = 256
    for byte in range(256):
        if byte in printable:
            yield byte, chr(byte)
        else:
            yield byte, chr(spare)
            spare += 1


def _chat_template(folder: Path, config: dict[str, Any]) -> Template | None:
    """chat_template.jinja, else `chat_template` of tokenizer_config.json (the one named default)."""
    file = folder / "chat_template.jinja"
    found: str | list[dict[str, str]] | None = config.get("chat_template")
    if file.exists():
        source = file.read_text(encoding="utf-8")
    elif isinstance(found, list):
        source = {item["name"]: item["template"] for item in found}.get("default")
    else:
        source = found
    if not source:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)  # pyright: ignore
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise InvalidInput(f"{folder}: the chat template is broken: {error}") from error


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON as it is, without the HTML escapes of Jinja2's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    """The date, for templates that tell it."""
    return datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _message(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        result["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": _arguments(text)}}
            for name, text in message.tool_calls
        ]
    return result


def _arguments(text: str) -> Any:
    """Templates print arguments with `tojson`, so they want the value; a model may write no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": json.loads(tool.parameters),
    }
    return {"type": "function", "function": function}
