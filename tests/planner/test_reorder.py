"""Orders of rows and free fields: what they save, what may not move, and that nothing is lost."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenter.planner.errors import PlannerError
from tenter.planner.prompt import Prompt
from tenter.planner.reorder import (
    Arrangement,
    Field,
    Layout,
    Table,
    Windows,
    arrange,
    encode,
    error_of_sums,
)
from tenter.planner.reorder.depend import Dependency, dependencies
from tenter.planner.reorder.search import by_statistics
from tenter.planner.reorder.template import free_fields
from tenter.planner.reorder.tree import Work, saved_blocks

BLOCK = 4
Rows = Sequence[Sequence[str]]


def count(texts: Sequence[str]) -> list[int]:
    """A tokenizer of single characters: sums are exact."""
    return [len(text) for text in texts]


def layout(names: str, free: str, before: str = "Judge: ") -> Layout:
    fields = tuple(Field(name, f"{name}=", ";", name in free) for name in names)
    return Layout(fields, before)


def cached(rows: Rows, where: Layout, made: Arrangement, cache: int | None = None) -> int:
    """The tokens found in a cache of whole blocks, prompt by prompt, as rendered."""
    held: dict[str, None] = {}
    hits = 0
    for row in made.rows:
        text = where.render(rows[row], made.order_of(row))
        prefixes = [text[:end] for end in range(BLOCK, len(text) + 1, BLOCK)]
        for prefix in prefixes:
            if prefix not in held:
                break
            hits += BLOCK
        for prefix in reversed(prefixes):
            held.pop(prefix, None)
            held[prefix] = None
        while cache is not None and len(held) * BLOCK > cache:
            del held[next(iter(held))]
    return hits


def reviews(rows: int, seed: int = 1) -> list[tuple[str, ...]]:
    """A unique id, a product and its maker, two ratings."""
    rng = random.Random(seed)
    made: list[tuple[str, ...]] = []
    for _ in range(rows):
        product = min(int(rng.paretovariate(0.8)), rows // 4 + 1)
        made.append(
            (
                f"{rng.randrange(10**8):08}",
                f"the product of number {product:04}",
                f"maker {product % 7}",
                str(rng.randrange(3)),
                str(rng.randrange(5)),
            )
        )
    return made


# ---- what is saved ------------------------------------------------------------------------------


def test_free_fields_move_so_that_rows_share_their_beginnings() -> None:
    rows, where = reviews(400), layout("ipmab", "ipmab")
    table = encode(rows, where, count, BLOCK)
    made = arrange(table)
    total = sum(len(where.render(row)) for row in rows)

    assert made.prompt_tokens == total
    assert made.saved_tokens / total > 0.6
    assert made.saved_before_tokens / total < 0.3


def test_the_estimate_is_what_a_cache_finds() -> None:
    """Values here share no text, so whole fields are all that is shared."""
    rng = random.Random(3)
    rows = [tuple(rng.choice("abcdefgh") * 9 for _ in range(5)) for _ in range(300)]
    where = layout("vwxyz", "vwxyz")
    made = arrange(encode(rows, where, count, BLOCK))
    found = cached(rows, where, made)

    assert made.saved_tokens <= found <= made.saved_tokens * 1.02
    assert cached(rows, where, made, cache=40 * BLOCK) >= found * 0.98, "rows go depth first"


@pytest.mark.parametrize("seed", range(3))
def test_it_saves_at_least_what_one_order_for_all_rows_does(seed: int) -> None:
    rows = reviews(300, seed)
    table = encode(rows, layout("ipmab", "ipmab"), count, BLOCK)
    made = arrange(table)
    fixed = saved_blocks(table, by_statistics(table), Work(0)) * BLOCK
    around = table.start_tokens // BLOCK * BLOCK * (table.rows - 1)

    assert made.saved_tokens >= fixed + around
    assert made.saved_tokens >= made.saved_before_tokens


def test_rows_take_different_orders_where_that_saves_more() -> None:
    """Half of the rows share a long text, the other half share another column's."""
    rng = random.Random(5)
    rows = [
        (f"{'x' * 40}{n % 3}", f"{rng.random():.30f}")
        if n % 2
        else (f"{rng.random():.30f}", f"{'y' * 40}{n % 3}")
        for n in range(200)
    ]
    made = arrange(encode(rows, layout("ab", "ab"), count, BLOCK))

    assert {made.order_of(row) for row in range(200) if row % 2} == {(0, 1)}
    assert {made.order_of(row) for row in range(200) if not row % 2} == {(1, 0)}


def test_the_text_before_the_fields_decides_where_blocks_end() -> None:
    rows = reviews(200)
    saved = {
        len(before): arrange(encode(rows, layout("ipmab", "ipmab", before), count, 16))
        for before in ("", "x" * 8, "x" * 16)
    }

    assert saved[16].saved_tokens - saved[0].saved_tokens == 16 * 199
    assert saved[8].prompt_tokens == saved[0].prompt_tokens + 8 * 200


# ---- what may not move --------------------------------------------------------------------------


def test_fixed_fields_stay_and_rows_still_move() -> None:
    rows, where = reviews(200), layout("mipab", "pab", before="")
    rows = [(row[2], row[0], *row[1:2], *row[3:]) for row in rows]
    made = arrange(encode(rows, where, count, BLOCK))

    assert {order[:2] for order in made.orders} == {(0, 1)}
    makers = [rows[row][0] for row in made.rows]
    assert makers == sorted(makers)


def test_without_free_fields_only_rows_move() -> None:
    rows = [("b", "2"), ("a", "1"), ("b", "1"), ("a", "2")]
    made = arrange(encode(rows, layout("xy", ""), count, BLOCK))

    assert made.orders == ((0, 1),)
    assert made.rows == (1, 3, 2, 0)


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(PlannerError, match="'b' is fixed and stands between free ones"):
        layout("abc", "ac")
    with pytest.raises(PlannerError, match="two fields are called 'a'"):
        layout("aa", "")
    with pytest.raises(PlannerError, match="row 1 has 1 values; the layout has 2 fields"):
        encode([("1", "2"), ("1",)], layout("ab", ""), count)


# ---- the edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[], [("a", "b")], [("a", "b")] * 5])
def test_small_and_equal_tables(rows: Rows) -> None:
    made = arrange(encode(rows, layout("xy", "xy"), count, BLOCK))

    assert made.rows == tuple(range(len(rows)))
    assert made.saved_tokens == max(0, len(rows) - 1) * (13 // BLOCK * BLOCK)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from(["", "a", "bb", "ccc ccc ccc"])] * 4), max_size=40),
    st.integers(0, 20),
    st.booleans(),
)
def test_each_row_runs_once_with_each_field_once(
    rows: list[tuple[str, ...]], before: int, partly: bool
) -> None:
    where = layout("wxyz", "xy" if partly else "wxyz", "-" * before)
    table = encode(rows, where, count, BLOCK)
    made = arrange(table)

    assert sorted(made.rows) == list(range(len(rows)))
    assert all(sorted(order) == [0, 1, 2, 3] for order in made.orders)
    assert made.saved_before_tokens <= made.saved_tokens <= made.prompt_tokens
    assert made.saved_tokens <= cached(rows, where, made)
    assert made == arrange(table), "the same table, the same arrangement"


def test_segments_joined_are_the_prompt() -> None:
    where = Layout.json_object(["a", "b", "c", "d"], "See ", free=["b", "c"])
    row = ["1", 'say "x"', None, 4]

    assert where.render(row) == 'See {"a": "1", "b": "say \\"x\\"", "c": null, "d": 4}'
    assert (
        where.render(row, (0, 2, 1, 3)) == 'See {"a": "1", "c": null, "b": "say \\"x\\"", "d": 4}'
    )
    assert Layout.json_object("ab").render(row[:2]) == '{"a": "1", "b": "say \\"x\\""}'
    assert error_of_sums([row], where, count) == 0


def test_a_tokenizer_that_merges_across_fields_is_measured() -> None:
    where = layout("ab", "ab")
    rows = [("x", "y")] * 4

    def pairs(texts: Sequence[str]) -> list[int]:
        return [(len(text) + 1) // 2 for text in texts]

    assert error_of_sums(rows, where, count) == 0
    assert 0 <= error_of_sums([*rows, ("xx", "yyy")], where, pairs) < 0.2


def test_values_are_tokenised_once() -> None:
    asked: list[str] = []

    def counted(texts: Sequence[str]) -> list[int]:
        asked.extend(texts)
        return count(texts)

    encode([("same text", str(n % 2)) for n in range(1000)], layout("ab", "ab"), counted)

    assert len(asked) < 200


# ---- dependencies -------------------------------------------------------------------------------


def test_dependencies_are_found_with_their_errors() -> None:
    rows = 600
    product = [n % 50 for n in range(rows)]
    maker = [code % 7 for code in product]
    typo = [code if row % 100 else 3 for row, code in enumerate(maker)]
    unique = list(range(rows))
    columns = [
        ("product", product, 50),
        ("maker", maker, 7),
        ("typo", typo, 7),
        ("unique", unique, rows),
    ]

    assert dependencies(columns) == [Dependency("product", "maker")]
    found = dependencies(columns, error=0.02)
    assert Dependency("product", "typo", 6 / rows) in found
    assert not any(each.left == "unique" for each in found)


# ---- windows ------------------------------------------------------------------------------------


def test_windows_share_what_they_have_in_common() -> None:
    rows, where = reviews(600), layout("ipmab", "ipmab")
    windows = Windows(where, count, BLOCK)
    together: list[int] = []
    choice: list[int] = []
    orders: list[tuple[int, ...]] = []
    for start in range(0, 600, 200):
        made = windows.arrange(rows[start : start + 200])
        together += [start + row for row in made.rows]
        choice += [len(orders) + index for index in made.choice]
        orders += made.orders
    whole = arrange(encode(rows, where, count, BLOCK))
    joined = Arrangement(tuple(together), tuple(orders), tuple(choice), 0, 0, 0)
    found, best = cached(rows, where, joined), cached(rows, where, whole)

    assert sorted(together) == list(range(600))
    assert found > 0.95 * best
    again = Windows(where, count, BLOCK, windows.orders).arrange(rows[:200])
    assert set(again.orders) <= {*windows.orders, (0, 1, 2, 3, 4)}


# ---- templates ----------------------------------------------------------------------------------

LINES = "About {{ shop }}:\nName: {{ name }}\nStyle: {{ style }}\nTime: {{ time }}\n\nIs it good?"


@pytest.mark.parametrize(
    ("source", "order", "expected"),
    [
        (LINES, (2, 0, 1), "About S:\nTime: T\nName: N\nStyle: Y\n\nIs it good?"),
        ("See: {{ name }}, style {{ style }}, at {{ time }}.", (1, 2, 0), None),
        ("{{ name }}, {{ style }}, {{ time }}", (2, 1, 0), "T, Y, N"),
        ("Row\n{{ name }} | {{ style }} | {{ time }} |", (1, 0, 2), "Row\nY | N | T |"),
    ],
)
def test_labels_move_with_their_fields(
    source: str, order: tuple[int, ...], expected: str | None
) -> None:
    cut = free_fields(Prompt(source), ["time", "name", "style"])
    values = {"shop": "S", "name": "N", "style": "Y", "time": "T"}
    straight = cut.prompt((0, 1, 2)).render(values)

    assert straight == Prompt(source).render(values)
    if expected is not None:
        assert cut.prompt(order).render(values) == expected


def test_a_template_becomes_a_layout() -> None:
    where = free_fields(Prompt(LINES), ["name", "style", "time"]).layout()

    assert [(field.name, field.free) for field in where.fields] == [
        ("shop", False),
        ("name", True),
        ("style", True),
        ("time", True),
    ]
    text = where.render(["S", "N", "Y", "T"])
    assert text == Prompt(LINES).render({"shop": "S", "name": "N", "style": "Y", "time": "T"})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ a }}", "'b' appears 0 times"),
        ("{{ a }} {{ b }} {{ a }}", "'a' appears 2 times"),
        ("{{ a }} {{ c }} {{ b }}", "code before the free field 'b'"),
        ("{{ a }}x{{ b }}", "parted by 'x'"),
        ("{{ c }}: {{ a }}, {{ b }}", "shares its line with code"),
    ],
)
def test_fields_that_cannot_move_are_named(source: str, problem: str) -> None:
    with pytest.raises(PlannerError, match=problem):
        free_fields(Prompt(source), ["a", "b"])


def test_a_table_has_no_rows_kept() -> None:
    table = encode(iter([("a", "b")]), layout("xy", "xy"), count)

    assert isinstance(table, Table)
    assert table.columns[0].codes == [0]
