"""A simulated engine: many steps at once are the same as one after another; the host's memory."""

import heapq
from itertools import count
from random import Random

import pytest

from tenter.planner.graph import Sampling
from tenter.planner.hardware import MODELS, preset, swap_seconds
from tenter.runtime.backends.replica import Replica
from tenter.runtime.calls import CallId, Request
from tenter.runtime.engine.state import Sequence

H100, LLAMA = preset("h100"), MODELS["llama-3.1-8b"]


def draw(sequence: Sequence, tokens: int) -> None:
    """Answers that no two sequences share."""
    first = (sequence.arrival + 1) << 40
    sequence.tokens += range(first + sequence.outputs, first + sequence.outputs + tokens)


def engine(kv_tokens: int, **more: int) -> Replica:
    return Replica(H100, LLAMA, kv_tokens, draw, chunk_tokens=512, **more)


def asked(
    index: int, prompt: range, output: int, now_s: float = 0.0, priority: float = 0.0
) -> Sequence:
    request = Request(
        CallId(str(index)), tuple(prompt), Sampling(max_tokens=output), priority=priority
    )
    return Sequence(request, index, now_s, output)


class Serving:
    """Sequences that arrive at times, pins that begin and end, and one engine."""

    def __init__(self, replica: Replica, most: int | None) -> None:
        self.replica, self.most = replica, most
        self.coming: list[tuple[float, int, str, object]] = []
        self._serial = count()
        self.ends: dict[str, float] = {}
        self.looks = 0

    def at(self, at_s: float, what: str, given: object = None) -> None:
        heapq.heappush(self.coming, (at_s, next(self._serial), what, given))

    def run(self) -> None:
        while self.coming:
            now_s, _, what, given = heapq.heappop(self.coming)
            self.looks += 1
            match what, given:
                case "add", Sequence():
                    self.replica.add(given, now_s)
                case "pin", (str(name), list(tokens), float(until_s)):
                    self.replica.retain(name, tokens, until_s, now_s)
                case "end", float(end_s) if self.replica.end_s == end_s:
                    for sequence in self.replica.end():
                        self.replica.remove(sequence, now_s)
                        self.ends[sequence.request.call] = end_s
                case _:
                    continue
            if self.replica.end_s is None:
                self.replica.start(now_s, self.most)
            if self.replica.end_s is not None:
                self.at(self.replica.end_s, "end", self.replica.end_s)


def served(seed: int, most: int | None) -> Serving:
    """A crowd under memory pressure: shared prefixes, preemptions, pins with ends, priorities."""
    random, serving = Random(seed), Serving(engine(3000, max_running=12), most)
    now_s = 0.0
    for index in range(60):
        now_s += random.expovariate(6.0)
        first = random.randrange(4) * 10_000
        prompt = range(first, first + random.randrange(20, 600))
        priority = float(random.randrange(3))
        serving.at(now_s, "add", asked(index, prompt, random.randrange(1, 500), now_s, priority))
        if random.random() < 0.3:
            pinned = list(range(first, first + 200))
            serving.at(now_s + 0.5, "pin", (f"s{index}", pinned, now_s + 0.5 + 3 * random.random()))
    serving.run()
    return serving


@pytest.mark.parametrize("seed", range(6))
def test_many_steps_at_once_are_the_same_as_one_after_another(seed: int) -> None:
    slow, fast = served(seed, most=1), served(seed, most=None)
    assert len(slow.ends) == 60
    assert fast.ends == pytest.approx(slow.ends, rel=1e-9)
    for one in (slow.replica, fast.replica):
        assert one.cache.available == one.cache.capacity
    for name in ("steps", "prefilled_tokens"):
        assert getattr(fast.replica, name) == getattr(slow.replica, name)
    assert fast.replica.batch.preemptions == slow.replica.batch.preemptions > 0
    assert fast.replica.busy_s == pytest.approx(slow.replica.busy_s)
    assert fast.looks < slow.looks / 2


def test_an_arrival_waits_for_the_step_under_way_and_for_no_more() -> None:
    serving = Serving(engine(100_000), None)
    serving.at(0.0, "add", asked(0, range(100), 1000))
    late = asked(1, range(9000, 9100), 1, 1.0)
    serving.at(1.0, "add", late)
    serving.run()
    assert late.started_s is not None and 1.0 <= late.started_s < 1.01


def again(replica: Replica) -> Sequence:
    """A long prompt, others that push it out, and the same prompt again."""
    serving = Serving(replica, None)
    serving.at(0.0, "add", asked(0, range(3000), 1))
    serving.at(10.0, "add", asked(1, range(10_000, 13_900), 1))
    last = asked(2, range(3000), 1, 20.0)
    serving.at(20.0, "add", last)
    serving.run()
    return last


def test_what_was_evicted_comes_back_from_the_host() -> None:
    lost, found = engine(4096), engine(4096, host_tokens=50_000)
    assert again(lost).cached < 300
    assert again(found).cached > 2900
    # Of 3,000 tokens about 2,900 had been evicted; the last token is always computed.
    assert 2600 <= found.loaded_tokens <= 3000
    assert lost.prefilled_tokens - found.prefilled_tokens == pytest.approx(2750, abs=200)
    assert lost.loaded_tokens == 0


def test_a_step_lasts_at_least_as_long_as_the_copy_that_it_waits_for() -> None:
    replica = engine(4096, host_tokens=50_000)
    last = again(replica)
    copied_s = swap_seconds(H100, LLAMA, replica.loaded_tokens)
    assert last.first_s is not None and last.started_s is not None
    assert last.first_s - last.started_s >= copied_s


def test_the_host_forgets_what_was_evicted_longest_ago() -> None:
    small = engine(4096, host_tokens=500)
    again(small)
    assert small.loaded_tokens <= 500


def test_a_host_page_is_found_only_behind_the_tokens_that_came_before_it() -> None:
    serving = Serving(engine(2048, host_tokens=50_000), None)
    serving.at(0.0, "add", asked(0, range(1600), 1))
    serving.at(10.0, "add", asked(1, range(10_000, 11_900), 1))
    other = asked(2, range(16), 1, 20.0)
    other.tokens[:] = [*range(500, 516), *range(16, 1600)]  # other tokens first, then the same
    other.prompt = len(other.tokens)
    serving.at(20.0, "add", other)
    serving.run()
    assert other.cached == 0
