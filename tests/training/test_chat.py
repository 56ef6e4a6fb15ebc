"""The chat template that ships writes the same text as the renderer that training used."""

import itertools
import random
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tinymodel.chat import CHAT_TEMPLATE, prompt_text
from tinymodel.mix import JOBS, draw, short_system, spans_of
from tinymodel.sample import Sample

from tenter.runtime.models import tiny_path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(tiny_path())


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    head = [{"role": "system", "content": sample.system}] if sample.system else []
    return head + [{"role": turn.role, "content": turn.text} for turn in sample.turns]


@pytest.mark.parametrize("job", sorted(JOBS))
def test_template_and_renderer_agree(tokenizer: Any, job: str) -> None:
    r = random.Random(1)
    for _ in range(10):
        drawn = draw(r, job)
        sample = Sample(
            job, drawn.turns, drawn.answer, drawn.key, short_system(r), drawn.tools, drawn.facts
        )
        shown = tokenizer.apply_chat_template(
            messages_of(sample), tools=list(sample.tools) or None, tokenize=False
        )
        assert shown == "".join(span.text for span in spans_of(sample))


def test_template_renders_structured_calls_like_written_ones(tokenizer: Any) -> None:
    call = {"name": "lookup", "arguments": {"key": "lamp"}}
    head = [{"role": "user", "content": "What does a lamp cost?"}]
    results = [{"role": "tool", "content": "17"}, {"role": "tool", "content": "18"}]
    structured = {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    as_text = {"role": "assistant", "tool_calls": [{**call, "arguments": '{"key": "lamp"}'}]}
    written = '<tool_call>\n{"name": "lookup", "arguments": {"key": "lamp"}}\n</tool_call>'
    plain = {"role": "assistant", "content": written}
    shown = {
        tokenizer.apply_chat_template(
            [*head, turn, *results], tokenize=False, add_generation_prompt=True
        )
        for turn in (structured, as_text, plain)
    }
    assert len(shown) == 1
    assert shown.pop().endswith(
        "<|im_start|>user\n<tool_response>\n17\n</tool_response>\n<tool_response>\n18\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_can_close_the_thinking(tokenizer: Any) -> None:
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert shown.endswith("<|im_start|>assistant\n<think>\n</think>\n")


def test_template_keeps_a_growing_conversation_a_prefix(tokenizer: Any) -> None:
    sample = draw(random.Random(2), "agent_session")
    texts = [prompt_text(sample.turns[:n], "", sample.tools) for n in range(1, 8, 2)]
    for shorter, longer in itertools.pairwise(texts):
        assert longer.startswith(shorter)


def test_shipped_template_is_the_source_s(tokenizer: Any) -> None:
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("job", sorted(JOBS))
def test_only_assistant_text_is_learned(job: str) -> None:
    r = random.Random(3)
    for _ in range(20):
        spans = spans_of(draw(r, job))
        assert any(span.learned for span in spans)
        role = "system"
        for span in spans:
            opened = re.fullmatch(r"<\|im_start\|>(\w+)\n.*", span.text, re.DOTALL)
            role = opened[1] if opened else role
            assert role == "assistant" or not span.learned


def test_digits_and_markup_are_single_tokens(tokenizer: Any) -> None:
    ids = tokenizer.encode("2026<think></think><tool_call></tool_call>", add_special_tokens=False)
    assert len(ids) == 8
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("2026<think>")


def test_every_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = 'Zoë paid 12 €\n\n{"a": [1, 2]}\t<tool_response>\n17\n</tool_response> done'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_checkpoint_is_small() -> None:
    folder: Path = tiny_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 1024 * 1024
