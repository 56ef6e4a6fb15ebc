"""The tokenizer: as transformers has it, and text that never holds half a character."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from tenter.runtime.calls import Message, ToolSpec
from tenter.runtime.engine.text import TextStream
from tenter.runtime.errors import InvalidInput
from tenter.runtime.tokenizer import HFTokenizer

TEXTS = (
    "the cat sat",
    " two  blanks\n\nand lines\t",
    "naïve café — 東京 🎉🎉 é",
    "<|im_start|>user\nhi<|im_end|>\n<|im_end|><|endoftext|>x",
    "",
    "<|im_start",
)
RICH = (
    "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = ToolSpec("add", "Adds.", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
CHAT = [
    Message("system", "be <brief> & kind"),
    Message("user", "add 1"),
    Message("assistant", "", (("add", '{"a": 1}'),)),
    Message("tool", "1"),
]


@pytest.fixture
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3")


def with_template(folder: Path, template: str, to: Path) -> Path:
    (to / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": template, "bos_token": "<|endoftext|>"}
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(text: str, folder: Path) -> None:
    ours, theirs = HFTokenizer(folder), AutoTokenizer.from_pretrained(folder)

    ids = ours.encode(text)

    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode(text) == ids


def test_chats_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    with_template(folder, RICH, tmp_path)
    ours, theirs = HFTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    turns = [
        {"role": "system", "content": "be <brief> & kind"},
        {"role": "user", "content": "add 1"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "1"},
    ]
    function = {"name": "add", "description": "Adds.", "parameters": json.loads(TOOL.parameters)}
    tools = [{"type": "function", "function": function}]

    expected = theirs.apply_chat_template(
        turns, tools=tools, add_generation_prompt=True, tokenize=False
    )

    assert ours.render(CHAT, (TOOL,)) == expected
    assert ours.chat(CHAT, (TOOL,)) == theirs.encode(expected, add_special_tokens=False)


def test_what_closes_a_turn(folder: Path, tmp_path: Path) -> None:
    assert HFTokenizer(folder).end_of_turn_ids == (2,)
    spaced = with_template(folder, RICH.replace("<|im_end|>\n", " <|im_end|>\n"), tmp_path)
    (spaced / "config.json").write_text('{"eos_token_id": [2, 0]}')
    tokenizer = HFTokenizer(spaced)
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.end_of_turn_ids == (*tokenizer.encode(" "), 2)


def test_a_template_may_refuse(folder: Path, tmp_path: Path) -> None:
    tokenizer = HFTokenizer(with_template(folder, RICH, tmp_path))

    with pytest.raises(InvalidInput, match="system first"):
        tokenizer.chat([Message("user", "x"), Message("system", "y")])


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no tokenizer\.json"):
        HFTokenizer(tmp_path)
    tokenizer = HFTokenizer(with_template(folder, "", tmp_path))
    with pytest.raises(InvalidInput, match="no chat template"):
        tokenizer.chat([Message("user", "x")])


def test_a_template_cannot_reach_out(folder: Path, tmp_path: Path) -> None:
    nasty = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = HFTokenizer(with_template(folder, nasty, tmp_path))
    with pytest.raises(InvalidInput, match="refused"):
        tokenizer.chat([Message("user", "x")])


@pytest.mark.parametrize("text", TEXTS)
def test_detokenizing_in_steps_gives_the_text(text: str, folder: Path) -> None:
    tokenizer = HFTokenizer(folder)
    ids = tokenizer.encode(text)
    stream = tokenizer.detokenizer()

    pieces = [stream.push(token) for token in ids]

    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_detokenizing_another_kind_of_vocabulary(tmp_path: Path) -> None:
    """Blanks as ▁ and bytes as <0xNN>, as SentencePiece has them."""
    pieces = ["▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in "é🎉".encode())]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(["<unk>", *pieces]))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(tmp_path)
    ids = [vocab[piece] for piece in pieces]
    stream = tokenizer.detokenizer()

    parts = [stream.push(token) for token in ids]

    assert "".join(parts) == tokenizer.decode(ids) == "the catsé🎉"
    assert parts == ["the", " cat", "s", "", "é", "", "", "", "🎉"]


def test_stop_strings_in_every_cut(folder: Path) -> None:
    """However the text falls into tokens, it ends right before the first stop string."""
    tokenizer, draw = HFTokenizer(folder), random.Random(1)
    for _ in range(300):
        text = "".join(draw.choices("ab é", k=draw.randrange(1, 14)))
        stop = tuple("".join(draw.choices("ab é", k=draw.randrange(1, 4))) for _ in range(2))
        stream, said = TextStream(tokenizer.detokenizer(), stop), ""
        for token in tokenizer.encode(text):
            said += stream.push(token)
            assert not any(s in said for s in stop)
            if stream.stopped:
                break
        said += stream.finish()
        places = [text.find(s) for s in stop if s in text]
        assert stream.stopped == bool(places)
        if places:
            ends = min(text.find(s) + len(s) for s in stop if s in text)
            first = min(text.find(s) for s in stop if s in text and text.find(s) + len(s) <= ends)
            assert said == text[:first]
        else:
            assert said == text
