"""The server's book of pins, without a server: what clients ask, budget, clock, who gives way."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.kvpolicy import sglang as plugin
from tenter.kvpolicy.sglang.fit import build
from tenter.kvpolicy.sglang.hints import Clock, Deref, Extend, Retain, read
from tenter.kvpolicy.sglang.pins import (
    AGREEING,
    LEAP_S,
    MAX_WAITING,
    PATIENCE,
    Admission,
    LogicalClock,
    PinBook,
    share,
)

Lock = frozenset[int]  # the tokens that a lock holds
NOW_S = 1_800_000_000.0


class Tree:
    """Locks that can be given back once, measured as a tree would."""

    def __init__(self) -> None:
        self.locked: list[Lock] = []

    def lock(self, *tokens: range) -> Lock:
        lock = frozenset(token for span in tokens for token in span)
        self.locked.append(lock)
        return lock

    def unlock(self, lock: Lock) -> None:
        self.locked.remove(lock)

    def measure(self, locks: Iterable[Lock]) -> int:
        return len(frozenset[int]().union(*locks))


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def book(tree: Tree) -> PinBook[Lock]:
    return PinBook(100, measure=tree.measure, unlock=tree.unlock)


def retain(scope: str, duration_s: float | None = None, priority: int = 50) -> Retain:
    return Retain(NOW_S, scope, duration_s, priority, end=None, covers_output=True)


def at(later_s: float) -> Clock:
    return Clock(NOW_S + later_s)


# ---- time ---------------------------------------------------------------------------------------


def test_a_pin_ends_with_the_first_message_after_its_time(book: PinBook[Lock], tree: Tree) -> None:
    book.hear([at(0)])
    book.take(retain("a", duration_s=10), tree.lock(range(30)))

    book.hear([at(9.9)])
    assert "a" in book
    assert book.held_tokens == 30
    book.hear([at(10)])

    assert "a" not in book
    assert (book.held_tokens, tree.locked, book.counts.expired) == (0, [], 1)


def test_a_pin_without_an_end_stays(book: PinBook[Lock], tree: Tree) -> None:
    book.take(retain("a"), tree.lock(range(30)))
    for hour in range(100):
        book.hear([at(hour * 3600)])

    assert "a" in book


def test_the_time_of_a_pin_counts_from_the_end_of_a_long_request(
    book: PinBook[Lock], tree: Tree
) -> None:
    book.hear([at(60)])  # said by others while the request ran
    book.take(retain("a", duration_s=2), tree.lock(range(30)))

    book.hear([at(61)])
    assert "a" in book
    book.hear([at(62)])
    assert "a" not in book


def test_a_message_extends_before_its_own_time_ends_pins(book: PinBook[Lock], tree: Tree) -> None:
    book.take(retain("a", duration_s=2), tree.lock(range(30)))
    book.take(retain("b", duration_s=2), tree.lock(range(30, 50)))

    book.hear([at(30), Extend(NOW_S + 30, "a", 60, None)])
    assert "a" in book
    assert "b" not in book
    book.hear([at(90)])

    assert "a" not in book


def test_an_earlier_time_changes_nothing(book: PinBook[Lock], tree: Tree) -> None:
    book.hear([at(20)])
    book.hear([at(5)])
    book.take(retain("a", duration_s=10), tree.lock(range(30)))
    book.hear([at(29)])

    assert "a" in book


def test_one_clock_that_is_wrong_ends_no_pins(book: PinBook[Lock], tree: Tree) -> None:
    book.take(retain("a", duration_s=600), tree.lock(range(30)))
    book.hear([at(0)])
    for second in range(50):
        book.hear([at(10 * LEAP_S + second)])
        book.hear([at(second)])

    assert "a" in book
    assert book.clock.now_s == NOW_S + 49


def test_a_leap_that_all_messages_agree_on_is_followed() -> None:
    clock = LogicalClock()
    clock.hear(0.0)
    for _ in range(AGREEING - 1):
        clock.hear(86_400.0)
        assert clock.now_s == 0.0
    clock.hear(86_400.0)
    assert clock.now_s == 86_400.0

    for second in range(AGREEING):  # the first one was wrong after all
        clock.hear(float(second))
    assert clock.now_s == AGREEING - 1


# ---- scopes -------------------------------------------------------------------------------------


def test_a_newer_pin_of_a_scope_takes_the_place_of_the_older(
    book: PinBook[Lock], tree: Tree
) -> None:
    book.take(retain("a", duration_s=5), tree.lock(range(30)))
    newer = tree.lock(range(60))
    book.take(retain("a", duration_s=50), newer)

    assert tree.locked == [newer]
    assert (len(book), book.held_tokens, book.counts.superseded) == (1, 60, 1)
    book.hear([at(6)])
    assert "a" in book


def test_extending_changes_end_and_priority(book: PinBook[Lock], tree: Tree) -> None:
    book.take(retain("a", duration_s=5, priority=90), tree.lock(range(30)))
    book.take(retain("b", priority=50), tree.lock(range(30, 60)))
    book.hear([Extend(NOW_S, "a", None, 10)])
    book.hear([at(1000)])
    assert "a" in book

    book.release_cheapest()
    assert "a" not in book


def test_extending_or_releasing_what_is_not_held_does_nothing(book: PinBook[Lock]) -> None:
    book.hear([Extend(NOW_S, "a", None, None), Deref(NOW_S, "a")])

    assert len(book) == 0
    assert book.counts.dereferenced == 0


@pytest.mark.parametrize(
    "action", [Deref(NOW_S, "a"), Extend(NOW_S, "a", None, 0)], ids=["deref", "priority 0"]
)
def test_a_client_releases_its_pin(book: PinBook[Lock], tree: Tree, action: Deref | Extend) -> None:
    book.take(retain("a"), tree.lock(range(30)))
    book.hear([action])

    assert (len(book), tree.locked, book.counts.dereferenced) == (0, [], 1)


@pytest.mark.parametrize(
    "late", [Deref(NOW_S - 1, "a"), Extend(NOW_S - 1, "a", 0, 0)], ids=["deref", "extend"]
)
def test_what_a_newer_request_has_overtaken_is_ignored(
    book: PinBook[Lock], tree: Tree, late: Deref | Extend
) -> None:
    book.take(retain("a"), tree.lock(range(30)))
    book.hear([late])
    assert "a" in book

    book.hear([Extend(NOW_S + 9, "a", 60, 50)])
    book.hear([Extend(NOW_S + 8, "a", 0, 50), Deref(NOW_S + 8, "a"), at(20)])
    assert "a" in book
    book.hear([Deref(NOW_S + 9, "a")])
    assert len(book) == 0


# ---- budget -------------------------------------------------------------------------------------


def test_a_pin_over_the_budget_is_refused_and_leaves_all_as_it_was(
    book: PinBook[Lock], tree: Tree
) -> None:
    older, other = tree.lock(range(40)), tree.lock(range(40, 90))
    book.take(retain("a"), older)
    book.take(retain("b"), other)

    assert not book.take(retain("a"), tree.lock(range(200, 260)))
    assert tree.locked == [older, other]
    assert (book.held_tokens, book.counts.refused_budget, book.counts.superseded) == (90, 1, 0)


def test_what_pins_share_counts_once(book: PinBook[Lock], tree: Tree) -> None:
    for branch in range(4):
        begin = 80 + 5 * branch
        assert book.take(retain(f"b{branch}"), tree.lock(range(80), range(begin, begin + 5)))

    assert book.held_tokens == 100
    assert not book.take(retain("one more"), tree.lock(range(80), range(100, 101)))


def test_pins_of_lower_priority_give_way_and_no_more_of_them_than_needed(
    book: PinBook[Lock], tree: Tree
) -> None:
    book.take(retain("low", priority=10), tree.lock(range(30)))
    book.take(retain("lower", priority=5), tree.lock(range(30, 60)))
    book.take(retain("equal", priority=50), tree.lock(range(60, 90)))

    assert book.take(retain("new", priority=50), tree.lock(range(100, 135)))
    assert [scope for scope in ("low", "lower", "equal", "new") if scope in book] == [
        "low",
        "equal",
        "new",
    ]
    assert book.counts.released_under_pressure == 1
    assert not book.take(retain("large", priority=50), tree.lock(range(200, 260)))
    assert "low" in book, "nobody gives way in vain"


def test_pins_go_cheapest_first(book: PinBook[Lock], tree: Tree) -> None:
    book.take(retain("dear", priority=90), tree.lock(range(5)))
    book.take(retain("long", duration_s=900), tree.lock(range(5, 15)))
    book.take(retain("soon", duration_s=9), tree.lock(range(15, 25)))
    book.take(retain("large", duration_s=1), tree.lock(range(25, 65)))

    gone: list[str] = []
    while book.release_cheapest():
        held = [scope for scope in ("dear", "long", "soon", "large") if scope in book]
        gone += [s for s in ("dear", "long", "soon", "large") if s not in held + gone]

    assert gone == ["soon", "long", "large", "dear"]
    assert not tree.locked


def test_a_flush_forgets_pins_whose_locks_are_gone(book: PinBook[Lock], tree: Tree) -> None:
    lock = tree.lock(range(30))
    book.take(retain("a"), lock)
    book.flush()

    assert (len(book), book.held_tokens, book.counts.flushed) == (0, 0, 1)
    assert tree.locked == [lock], "given back by nobody: the tree has forgotten it"


def test_after_a_flush_the_first_message_sets_the_clock(book: PinBook[Lock], tree: Tree) -> None:
    book.hear([at(-100 * LEAP_S)])
    book.flush()
    book.hear([at(0)])
    book.take(retain("a", duration_s=2), tree.lock(range(30)))
    book.hear([at(2)])

    assert "a" not in book


def test_a_request_that_would_fit_beside_pins_waits_for_others_but_only_so_long(
    book: PinBook[Lock], tree: Tree
) -> None:
    admission = Admission(book, pool_tokens=200)
    book.take(retain("a"), tree.lock(range(50)))
    for number in range(PATIENCE):
        assert not admission.make_room("request", 140, running=True)
        admission.finished(f"other {number}")

    assert not admission.make_room("another", 140, running=True), "each waits on its own account"
    assert admission.make_room("request", 140, running=True)
    assert not admission.make_room("request", 140, running=True), "nothing is left to release"


def test_requests_that_are_refused_by_turns_all_lose_patience(
    book: PinBook[Lock], tree: Tree
) -> None:
    admission = Admission(book, pool_tokens=200)
    for number in range(2):
        book.take(retain(f"pin {number}"), tree.lock(range(20 * number, 20 * number + 20)))
    for number in range(PATIENCE):
        assert not admission.make_room("chunked", 100, running=True)
        assert not admission.make_room("next in line", 100, running=True)
        admission.finished(f"other {number}")

    assert admission.make_room("chunked", 100, running=True)
    assert admission.make_room("next in line", 100, running=True)


def test_a_request_that_comes_again_waits_anew(book: PinBook[Lock], tree: Tree) -> None:
    admission = Admission(book, pool_tokens=200)
    book.take(retain("a"), tree.lock(range(50)))
    assert not admission.make_room("request", 100, running=True)
    for number in range(PATIENCE):
        admission.finished(f"other {number}")
    admission.finished("request")

    assert not admission.make_room("request", 100, running=True)


def test_requests_that_never_end_are_not_remembered_for_ever(
    book: PinBook[Lock], tree: Tree
) -> None:
    admission = Admission(book, pool_tokens=200)
    book.take(retain("a"), tree.lock(range(50)))
    for number in range(MAX_WAITING + 10):
        assert not admission.make_room(f"request {number}", 100, running=True)
    for number in range(PATIENCE):
        admission.finished(f"other {number}")

    assert not admission.make_room("request 0", 100, running=True), "it was forgotten"
    assert admission.make_room(f"request {MAX_WAITING}", 100, running=True)


def test_what_nobody_has_promised_keeps_nobody_waiting(book: PinBook[Lock], tree: Tree) -> None:
    admission = Admission(book, pool_tokens=200)
    book.take(retain("undecided", 30, priority=1), tree.lock(range(50)))
    book.take(retain("promised"), tree.lock(range(50, 80)))

    assert admission.make_room("request", 100, running=True)
    assert "undecided" not in book
    assert not admission.make_room("request", 100, running=True)
    assert "promised" in book


def test_pins_of_the_lowest_priority_give_way_to_newer_ones_the_oldest_first(
    book: PinBook[Lock], tree: Tree
) -> None:
    for second, (scope, length) in enumerate((("old", 50), ("young", 30), ("new", 60))):
        book.hear([at(second)])
        first = 100 * second
        assert book.take(retain(scope, 30, priority=1), tree.lock(range(first, first + length)))
    assert "old" not in book
    assert "young" in book
    assert book.take(retain("promised"), tree.lock(range(500, 590)))

    assert not book.take(retain("late", 30, priority=1), tree.lock(range(600, 660)))
    assert "promised" in book


@pytest.mark.parametrize(
    ("needed", "running"), [(150, True), (1, False)], ids=["too large", "nothing runs"]
)
def test_pins_make_room_at_once_where_waiting_cannot_help(
    book: PinBook[Lock], tree: Tree, needed: int, running: bool
) -> None:
    admission = Admission(book, pool_tokens=200)
    book.take(retain("a"), tree.lock(range(50)))

    assert admission.make_room("request", needed, running=running)
    assert len(book) == 0


COMMANDS = st.one_of(
    st.tuples(
        st.just("take"),
        st.sampled_from("abcd"),
        st.one_of(st.none(), st.floats(0, 100)),
        st.integers(0, 100),
        st.tuples(st.integers(0, 150), st.integers(1, 80)),
    ),
    st.tuples(st.just("clock"), st.floats(0, 200)),
    st.tuples(st.just("extend"), st.sampled_from("abcd"), st.floats(0, 100)),
    st.tuples(st.just("deref"), st.sampled_from("abcd")),
    st.tuples(st.just("pressure")),
)


@given(st.lists(COMMANDS, max_size=40))
def test_locks_and_pins_never_part_and_the_budget_holds(commands: list[tuple[Any, ...]]) -> None:
    tree = Tree()
    book = PinBook[Lock](100, measure=tree.measure, unlock=tree.unlock)
    for command in commands:
        match command:
            case ("take", scope, duration_s, priority, (begin, length)):
                lock = tree.lock(range(begin, begin + length))
                book.take(retain(scope, duration_s, priority), lock)
            case ("clock", later_s):
                book.hear([at(later_s)])
            case ("extend", scope, duration_s):
                book.hear([Extend(NOW_S, scope, duration_s, None)])
            case ("deref", scope):
                book.hear([Deref(NOW_S, scope)])
            case _:
                book.release_cheapest()
        assert len(tree.locked) == len(book) <= 4
        assert book.held_tokens == tree.measure(tree.locked) <= 100


# ---- the wire -----------------------------------------------------------------------------------


def envelope(*actions: tuple[str, Any], version: str = "1.0") -> Any:
    return SimpleNamespace(
        actions=[
            SimpleNamespace(action_type=kind, action_version=version, payload=payload)
            for kind, payload in actions
        ]
    )


DIRECTIVE = {
    "start": 0,
    "end": None,
    "covers_output": True,
    "priority": 50,
    "duration": 2.5,
}
RETAIN = {"scope": "a", "now_s": NOW_S, "directives": [DIRECTIVE]}


def test_actions_are_read_in_order() -> None:
    actions, refused = read(
        envelope(
            ("tenter.clock", {"now_s": NOW_S}),
            ("kv.retain", RETAIN),
            ("tenter.extend", {"scope": "b", "now_s": NOW_S, "duration": None, "priority": 7}),
            ("kv.deref", {"scope": "c", "now_s": NOW_S}),
        )
    )

    assert refused == 0
    assert actions == [
        Clock(NOW_S),
        Retain(NOW_S, "a", 2.5, 50, None, covers_output=True),
        Extend(NOW_S, "b", None, 7),
        Deref(NOW_S, "c"),
    ]


def test_actions_of_others_are_skipped_without_complaint() -> None:
    assert read(envelope(("kv.prefetch", {"blocks": []}))) == ([], 0)
    assert read(envelope(("kv.retain", RETAIN), version="2.0")) == ([], 0)
    assert read(None) == ([], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": ""},
        {"scope": "x" * 257},
        {"scope": None},
        {"now_s": math.nan},
        {"now_s": -1},
        {"now_s": 10**400},
        {"now_s": True},
        {"now_s": "1800000000"},
        {"directives": []},
        {"directives": [DIRECTIVE, DIRECTIVE]},
        {"directives": "all"},
        {"directives": [None]},
        {"directives": [{**DIRECTIVE, "priority": 101}]},
        {"directives": [{**DIRECTIVE, "priority": 1.5}]},
        {"directives": [{**DIRECTIVE, "duration": math.inf}]},
        {"directives": [{**DIRECTIVE, "duration": -1}]},
        {"directives": [{key: DIRECTIVE[key] for key in ("start", "end", "priority")}]},
        {"directives": [{**DIRECTIVE, "end": -4}]},
        {"directives": [{**DIRECTIVE, "covers_output": "yes"}]},
    ],
    ids=str,
)
def test_a_malformed_action_is_refused_and_the_rest_is_read(wrong: dict[str, Any]) -> None:
    clock = ("tenter.clock", {"now_s": NOW_S})

    assert read(envelope(("kv.retain", {**RETAIN, **wrong}), clock)) == ([Clock(NOW_S)], 1)


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from([10**400, -(10**400), NOW_S, "a", 50]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["scope", "now_s", "directives", "duration", "priority", "end", "covers_output"]
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(["tenter.clock", "kv.retain", "tenter.extend", "kv.deref", "else"])


@given(st.lists(st.tuples(KINDS, ANYTHING), max_size=20))
def test_no_envelope_is_able_to_raise(actions: list[tuple[str, Any]]) -> None:
    found, refused = read(envelope(*actions))
    tree = Tree()
    book = PinBook[Lock](100, measure=tree.measure, unlock=tree.unlock)
    book.hear(found)

    assert len(found) + refused <= len(actions)


@given(ANYTHING, ANYTHING)
def test_what_is_no_envelope_asks_for_nothing(actions: Any, item: Any) -> None:
    assert read(actions) == ([], 0)
    assert read(SimpleNamespace(actions=actions)) == ([], 0)
    assert read(SimpleNamespace(actions=[item])) == ([], 0)


# ---- installing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "half"], ids=str)
def test_a_share_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"TENTER_PIN_SHARE.*{text!r}"):
        share({"TENTER_PIN_SHARE": text})


def test_the_share_of_the_pool_is_four_fifths_unless_set() -> None:
    assert share({}) == share({"TENTER_PIN_SHARE": ""}) == 0.8
    assert share({"TENTER_PIN_SHARE": "1"}) == 1.0


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names under which backends are registered, with an SGLang 0.5.23 made of two modules."""
    names: list[str] = []
    version, registry = ModuleType("sglang.version"), ModuleType("registry")
    vars(version)["__version__"] = "0.5.23"
    vars(registry)["register_radix_cache_backend"] = lambda name, _: names.append(name)
    monkeypatch.delenv("TENTER_PIN_SHARE", raising=False)
    for name in ("sglang", "sglang.srt", "sglang.srt.mem_cache"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.version", version)
    monkeypatch.setitem(sys.modules, "sglang.srt.mem_cache.registry", registry)
    return names


def test_it_registers_with_the_version_it_was_tested_with(
    registered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    plugin.register()

    assert registered == ["tenter"]
    assert not caplog.records


def test_it_refuses_another_version_with_one_clear_line(
    registered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    vars(sys.modules["sglang.version"])["__version__"] = "0.5.24"
    plugin.register()

    assert not registered
    (line,) = [record.getMessage() for record in caplog.records]
    assert "0.5.23" in line
    assert "0.5.24" in line
    assert "install sglang==0.5.23" in line


def test_it_refuses_a_share_that_is_none(
    registered: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENTER_PIN_SHARE", "all")
    plugin.register()

    assert not registered
    assert "TENTER_PIN_SHARE" in caplog.text


@pytest.fixture
def scheduler(registered: list[str], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What SGLang tells a backend that is to be built: an ordinary server."""
    runtime = ModuleType("runtime_context")
    memory = SimpleNamespace(enable_lmcache=False, enable_flexkv=False)
    disaggregation = SimpleNamespace(disaggregation_mode="null")
    vars(runtime).update(get_memory=lambda: memory, get_disagg=lambda: disaggregation)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", runtime)
    return SimpleNamespace(
        disable_radix_cache=False,
        is_hybrid_swa=False,
        full_tokens_per_layer=None,
        memory=memory,
        disaggregation=disaggregation,
    )


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda told: vars(told).update(disable_radix_cache=True), "--disable-radix-cache"),
        (lambda told: vars(told.memory).update(enable_lmcache=True), "--enable-lmcache"),
        (
            lambda told: vars(told.disaggregation).update(disaggregation_mode="decode"),
            "--disaggregation-mode",
        ),
    ],
    ids=["no tree", "another cache", "disaggregation"],
)
def test_a_configuration_that_can_keep_no_pins_is_refused_with_its_cure(
    scheduler: SimpleNamespace, change: Callable[[SimpleNamespace], None], flag: str
) -> None:
    change(scheduler)

    with pytest.raises(ValueError, match=f"--radix-cache-backend tenter.*{flag}"):
        build(scheduler)


def test_an_sglang_that_was_changed_is_refused_by_the_name_of_what_differs(
    scheduler: SimpleNamespace,
) -> None:
    registry = sys.modules["sglang.srt.mem_cache.registry"]
    vars(registry)["create_unified_radix_cache"] = lambda ctx: ctx

    with pytest.raises(ValueError, match=r"create_unified_radix_cache takes no \['cache_class'\]"):
        build(scheduler)


def test_the_plugin_needs_nothing_to_be_imported() -> None:
    names = [f"tenter.kvpolicy.sglang{n}" for n in ("", ".cache", ".fit", ".metrics", ".pins")]
    code = (
        f"import sys; before = set(sys.modules); import {', '.join(names)}\n"
        "print(*{n.split('.')[0] for n in {*sys.modules} - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["tenter"], done.stderr
