"""Runs a checkpoint on held-out questions and says which answers are right."""

import ast
import json
import operator
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tenter.runtime.calls import CallId, Request, Sampling
from tenter.runtime.engine.load import EngineOptions, load_engine

from .chat import TURN_END, TURN_START, call_text, prompt_text
from .checkpoint import END_OF_TEXT_ID, TURN_END_ID
from .mix import beside_documents, draw, short_system
from .sample import Random, Sample
from .tokenizer import load_tokenizer
from .words import idle_text

SPARE_CALLS = 4  # an agent may call this much more often than the facts need, then it has failed
MAX_ANSWER_TOKENS = 420
THINK_END = "</think>\n"
_CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)
_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to continue a text."""

    max_tokens: int = MAX_ANSWER_TOKENS
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0  # of the first text; the next ones count up


class Model:
    """A checkpoint that continues texts, on the project's own engine in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        options = EngineOptions(dtype="float32", device="cpu", max_running=128, threads=1)
        self._engine = load_engine(folder, options, time.monotonic)
        self._calls = count()

    def count_tokens(self, text: str) -> int:
        """The length of a text."""
        return len(self.tokenizer.encode(text).ids)

    def complete(self, prompts: Sequence[str], how: Decoding) -> list[str]:
        """What the model writes after each prompt, up to the end of its turn."""
        places: dict[str, int] = {}
        for place, encoding in enumerate(self.tokenizer.encode_batch(list(prompts))):
            call = CallId(f"{next(self._calls)}")
            places[call] = place
            sampling = Sampling(
                max_tokens=how.max_tokens, temperature=how.temperature, seed=how.seed + place
            )
            self._engine.submit(Request(call, tuple(encoding.ids), sampling))
        completions = [""] * len(prompts)
        while self._engine.busy:
            for call, chunk in self._engine.step():
                completions[places[call]] = self._decode(list(chunk.token_ids))
        return completions

    def _decode(self, ids: list[int]) -> str:
        ends = [index for index, token in enumerate(ids) if token in {TURN_END_ID, END_OF_TEXT_ID}]
        kept = ids[: ends[0]] if ends else ids
        return self.tokenizer.decode(kept, skip_special_tokens=False)


def held_out_samples(job: str, number: int, seed: int = 11) -> list[Sample]:
    """Evaluation questions of a job, with short system messages."""
    r = Random(f"{job} {seed}")
    samples = []
    while len(samples) < number:
        sample = draw(r, job, held_out=True)
        samples.append(replace(sample, system=short_system(r)))
    return samples


def lengthened(model: Model, samples: Sequence[Sample], tokens: int, seed: int = 2) -> list[Sample]:
    """The samples with irrelevant documents, so that each prompt has about `tokens` tokens."""
    r = Random(seed)
    nominal = 2000
    actual = model.count_tokens(idle_text(Random(seed), nominal))
    longer = []
    for sample in samples:
        missing = tokens - model.count_tokens(question_of(sample))
        if missing > 20:
            sample = beside_documents(r, sample, int(missing * nominal / actual))
        longer.append(sample)
    return longer


def question_of(sample: Sample) -> str:
    """The prompt: everything before the assistant's first own turn."""
    turns = sample.turns
    own = [i for i, t in enumerate(turns) if t.role == "assistant" and t.spans[-1].learned]
    return prompt_text(turns[: own[0]], sample.system, sample.tools)


def final_answer(completion: str) -> str:
    """What follows the thinking."""
    return completion.rsplit(THINK_END, 1)[-1].strip()


def is_right(sample: Sample, completion: str) -> bool:
    """Whether a completion ends with the expected answer; JSON is compared as values."""
    given = final_answer(completion)
    if not sample.answer.startswith("{"):
        return given == sample.answer
    try:
        return json.loads(given) == json.loads(sample.answer)
    except json.JSONDecodeError:
        return False


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("not a sum or product of integers")


def tool_result(sample: Sample, call: str) -> str:
    """What the sample's tools answer to a call; arithmetic is really computed."""
    try:
        parsed = json.loads(call)
        name, arguments = parsed["name"], parsed["arguments"]
        known = sample.facts.get(call_text(name, arguments))
        if known is not None:
            return known
        expression = str(next(iter(arguments.values())))
        return str(_value(ast.parse(expression, mode="eval").body))
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, StopIteration):
        return "error: unknown"


def run_agents(model: Model, samples: Sequence[Sample], how: Decoding) -> list[str]:
    """Let each conversation call its tools until it answers; returns the last turns."""
    texts = [question_of(sample) for sample in samples]
    finals = [""] * len(samples)
    running = list(range(len(samples)))
    calls_left = [len(sample.facts) + SPARE_CALLS for sample in samples]
    while running:
        completions = model.complete([texts[i] for i in running], how)
        still = []
        for index, completion in zip(running, completions, strict=True):
            finals[index] = completion
            call = _CALL.search(completion)
            calls_left[index] -= 1
            if call and calls_left[index] > 0:
                result = tool_result(samples[index], call.group(1))
                texts[index] += (
                    f"{completion}{TURN_END}\n{TURN_START}user\n<tool_response>\n{result}\n"
                    f"</tool_response>{TURN_END}\n{TURN_START}assistant\n"
                )
                still.append(index)
        running = still
    return finals


def completions_of(model: Model, samples: Sequence[Sample], how: Decoding) -> list[str]:
    """The last turn of each conversation, with tools where the samples have some."""
    if samples and samples[0].tools:
        return run_agents(model, samples, how)
    return model.complete([question_of(sample) for sample in samples], how)


def accuracy(model: Model, samples: Sequence[Sample], how: Decoding) -> float:
    """The share of right answers."""
    completions = completions_of(model, samples, how)
    right = [is_right(s, c) for s, c in zip(samples, completions, strict=True)]
    return sum(right) / len(right)


@dataclass(frozen=True, slots=True)
class Votes:
    """Accuracy of one sampled answer and of the majority of several."""

    single: float
    majority: Mapping[int, float]


def vote(model: Model, samples: Sequence[Sample], how: Decoding, sizes: Sequence[int]) -> Votes:
    """Sample max(sizes) answers per question and count majorities of the first n."""
    most = max(sizes)
    repeated = [sample for sample in samples for _ in range(most)]
    completions = completions_of(model, repeated, how)
    answers = [final_answer(c) for c in completions]
    per_question = [answers[i * most : (i + 1) * most] for i in range(len(samples))]
    right = [is_right(s, c) for s, c in zip(repeated, completions, strict=True)]
    return Votes(
        sum(right) / len(right),
        {n: _majority_share(samples, per_question, n) for n in sizes},
    )


def _majority_share(samples: Sequence[Sample], answers: list[list[str]], size: int) -> float:
    winners = [Counter(given[:size]).most_common(1)[0][0] for given in answers]
    return sum(is_right(s, w) for s, w in zip(samples, winners, strict=True)) / len(samples)


def budget_accuracy(
    model: Model, samples: Sequence[Sample], how: Decoding, budgets: Sequence[int]
) -> dict[int, float]:
    """Accuracy when thinking is cut after so many tokens and the answer is then forced."""
    questions = [question_of(sample) for sample in samples]
    chains = [model.tokenizer.encode(c).ids for c in completions_of(model, samples, how)]
    return {b: _forced_accuracy(model, samples, questions, chains, b) for b in budgets}


def _forced_accuracy(
    model: Model,
    samples: Sequence[Sample],
    questions: Sequence[str],
    chains: Sequence[list[int]],
    budget: int,
) -> float:
    """Cut each chain at `budget` tokens (the opening mark not counted) and decode the answer."""
    prompts = []
    for question, chain in zip(questions, chains, strict=True):
        thoughts = model.tokenizer.decode(chain, skip_special_tokens=False)
        if len(chain) > budget + 2:
            thoughts = model.tokenizer.decode(chain[: budget + 2], skip_special_tokens=False)
        thoughts = thoughts.split("</think>")[0].rstrip("\n")
        prompts.append(f"{question}{thoughts}\n{THINK_END}")
    forced = model.complete(prompts, Decoding(max_tokens=16))
    return sum(is_right(s, c) for s, c in zip(samples, forced, strict=True)) / len(samples)
