"""Jobs with visible steps: sums, sums thought over several times, products, checks, word problems."""

from dataclasses import dataclass

from .chat import Span, Turn, said
from .sample import Random, Sample, interrupted, thinking
from .words import FIRST_NAMES, ITEMS, plural

SLIP_SHARE = 0.12  # passes over a sum that contain a slip, which the majority corrects
OVERTHINKING_INTERRUPTED_SHARE = 0.35
SLIPS = (-10, 10, -1, 1, 100, -100, 9, -9, 20, -20)
ASKING = (
    "Compute {}.",
    "Calculate {}.",
    "What is {}?",
    "How much is {}?",
    "Work out {}.",
    "{} = ?",
)
THINK_HARD = ("Think hard.", "Think hard.", "Think carefully.", "Check your work.")


@dataclass(frozen=True, slots=True)
class Term:
    """A signed operand of a sum."""

    sign: int
    size: int

    @property
    def value(self) -> int:
        """The operand with its sign."""
        return self.sign * self.size


def operand(r: Random) -> int:
    """Mostly two digits, sometimes three."""
    return r.randint(100, 999) if r.random() < 0.15 else r.randint(2, 99)


def never_negative(terms: list[Term]) -> bool:
    """Whether every partial sum is at least zero."""
    total = 0
    for term in terms:
        total += term.value
        if total < 0:
            return False
    return True


def random_terms(r: Random, count: int) -> list[Term]:
    """A sum of `count` operands."""
    while True:
        signs = [1, *r.choices((1, 1, -1), k=count - 1)]
        terms = [Term(sign, operand(r)) for sign in signs]
        if never_negative(terms):
            return terms


def shuffled(r: Random, terms: list[Term]) -> list[Term]:
    """The same sum in another order, where one can be found."""
    for _ in range(20):
        order = r.sample(terms, len(terms))
        if order[0].sign > 0 and never_negative(order):
            return order
    return terms


def written(terms: list[Term], gap: str = " ") -> str:
    """The sum as one writes it."""
    signs = ("-" if t.sign < 0 else "+" for t in terms[1:])
    pairs = zip(signs, terms[1:], strict=True)
    return str(terms[0].size) + "".join(f"{gap}{sign}{gap}{t.size}" for sign, t in pairs)


def total_of(terms: list[Term]) -> int:
    """The value of the sum."""
    return sum(term.value for term in terms)


def sum_steps(terms: list[Term]) -> str:
    """One line per addition."""
    lines, total = [], terms[0].value
    for term in terms[1:]:
        lines.append(f"{total}{'+' if term.sign > 0 else '-'}{term.size}={total + term.value}")
        total += term.value
    return "\n".join(lines)


def asked_sum(r: Random, terms: list[Term]) -> str:
    """A question for the sum, in one of several wordings."""
    return r.choice(ASKING).format(written(terms, r.choice((" ", " ", " ", ""))))


def arithmetic(r: Random, operands: int = 0) -> Sample:
    """A sum of two to seven operands, computed from left to right."""
    terms = random_terms(r, operands or r.randint(2, 7))
    value = str(total_of(terms))
    turns = (said("user", asked_sum(r, terms)), thinking(r, sum_steps(terms), value))
    return Sample("arithmetic", turns, value, written(terms))


@dataclass(frozen=True, slots=True)
class Pass:
    """One computation of a sum, maybe with a slip; `spans` hides the slip from the loss."""

    spans: tuple[Span, ...]
    value: int

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(span.text for span in self.spans)


def one_pass(r: Random, terms: list[Term]) -> Pass:
    """Compute a sum; now and then one step is wrong, and the wrong number is not learned."""
    slip_at = r.randrange(1, len(terms)) if r.random() < SLIP_SHARE else 0
    spans: list[Span] = []
    total = terms[0].value
    for index, term in enumerate(terms[1:], 1):
        spans.append(Span(f"{total}{'+' if term.sign > 0 else '-'}{term.size}=", learned=True))
        total += term.value + (r.choice(SLIPS) if index == slip_at else 0)
        spans.append(Span(str(total), learned=index != slip_at))
        spans.append(Span("\n", learned=True))
    spans.append(Span(f"so {total}\n", learned=True))
    return Pass(tuple(spans), total)


def majority(values: list[int]) -> int:
    """The most frequent value, the earliest among equals."""
    return max(values, key=lambda value: (values.count(value), -values.index(value)))


def reason(r: Random, operands: int = 0) -> Sample:
    """A sum computed three to five times in different orders; the majority is the answer."""
    terms = random_terms(r, operands or r.randint(3, 6))
    value = total_of(terms)
    while True:
        again = [shuffled(r, terms) if r.random() < 0.5 else terms for _ in range(r.randint(2, 4))]
        orders = [terms, *again]
        passes = [one_pass(r, order) for order in orders]
        turn = _thought_over(r, passes, value)
        if turn is not None:
            break
    question = f"{asked_sum(r, terms)} {r.choice(THINK_HARD)}"
    return Sample("reason", (said("user", question), turn), str(value), written(terms))


def _thought_over(r: Random, passes: list[Pass], value: int) -> Turn | None:
    """The thinking turn, cut short now and then; None where the majority is wrong."""
    if r.random() < OVERTHINKING_INTERRUPTED_SHARE:
        return _cut_short(r, passes, value)
    if majority([p.value for p in passes]) != value:
        return None
    again = Span("again\n", learned=True)
    body = [s for index, p in enumerate(passes) for s in ((again, *p.spans) if index else p.spans)]
    head, tail = Span("<think>\n", learned=True), Span(f"</think>\n{value}", learned=True)
    return Turn("assistant", (head, *body, tail))


def _cut_short(r: Random, passes: list[Pass], value: int) -> Turn | None:
    done = r.randint(0, len(passes))
    if done and majority([p.value for p in passes[:done]]) != value:
        return None
    text = "again\n".join(p.text for p in passes[:done])
    if done < len(passes) and r.random() < 0.7:
        following = ("again\n" if done else "") + passes[done].text
        text += following[: r.randint(0, following.index("so "))]
    return interrupted(text, str(value))


def multiply(r: Random) -> Sample:
    """A product by place values: two digits by two, three by two, or any by one."""
    longest_a, longest_b = r.choices(((99, 99), (999, 99), (999, 9)), (6, 1, 3))[0]
    a, b = r.randint(12, longest_a), r.randint(12 if longest_b > 9 else 2, longest_b)
    value = str(a * b)
    sign = r.choice((" * ", " * ", "*", " x ", " times "))
    question = r.choice(ASKING).format(f"{a}{sign}{b}")
    low, high = sorted((a, b))
    turns = (said("user", question), thinking(r, product_steps(a, b), value))
    return Sample("multiply", turns, value, f"{low}*{high}")


def product_steps(a: int, b: int) -> str:
    """The scratchpad of a product: split b by its digits, multiply, add."""
    if b < 10:
        tens, ones = a // 10 * 10, a % 10
        lines = [f"{a}={tens}+{ones}", f"{tens}*{b}={tens * b}", f"{ones}*{b}={ones * b}"]
        return "\n".join([*lines, f"{tens * b}+{ones * b}={a * b}"])
    tens, ones = b // 10 * 10, b % 10
    lines = [f"{b}={tens}+{ones}", f"{a}*{tens}={a * tens}", f"{a}*{ones}={a * ones}"]
    return "\n".join([*lines, f"{a * tens}+{a * ones}={a * b}"])


def verify(r: Random) -> Sample:
    """Is a claimed sum right: yes or no."""
    terms = random_terms(r, r.randint(2, 5))
    claim = total_of(terms) + (0 if r.random() < 0.5 else r.choice(SLIPS[:4] + SLIPS[6:9]))
    verdict = "yes" if claim == total_of(terms) else "no"
    equation = f"{written(terms)} = {claim}"
    question = r.choice(
        ("Verify {}.", "Is it true that {}?", "Check this sum: {}", "Is this correct? {}")
    ).format(equation)
    turns = (said("user", question), thinking(r, sum_steps(terms), verdict))
    return Sample("verify", turns, verdict, equation)


@dataclass(frozen=True, slots=True)
class Story:
    """A word problem with the operations that solve it."""

    text: str
    operations: tuple[tuple[int, str, int], ...]
    value: int

    @property
    def steps(self) -> str:
        """One line per operation."""
        return "\n".join(f"{a}{op}{b}={apply(a, op, b)}" for a, op, b in self.operations)


def apply(a: int, op: str, b: int) -> int:
    """The result of one operation."""
    return {"*": a * b, "+": a + b, "-": a - b}[op]


def story(r: Random) -> Story:
    """Somebody owns some boxes of things; things come and go."""
    who, things = r.choice(FIRST_NAMES), plural(r.choice(ITEMS))
    boxes, each = r.randint(2, 9), r.randint(3, 40)
    holder = r.choice(("crates", "rooms", "shelves"))
    sentences = [f"{who} has {boxes} {holder} with {each} {things} each."]
    operations, total = [(boxes, "*", each)], boxes * each
    for _ in range(r.randint(1, 4)):
        change = r.randint(2, 60)
        op = "+" if change > total or r.random() < 0.4 else "-"
        sentences.append(_change(r, who, things, op, change))
        operations.append((total, op, change))
        total = apply(total, op, change)
    sentences.append(
        r.choice(
            (
                f"How many {things} does {who} have now?",
                f"How many {things} are there now?",
                f"How many {things} are left in the end?",
            )
        )
    )
    return Story(" ".join(sentences), tuple(operations), total)


def _change(r: Random, who: str, things: str, op: str, count: int) -> str:
    came = (
        f"{who} buys {count} more.",
        f"{count} {things} arrive.",
        f"{who} finds {count} {things}.",
    )
    went = (
        f"{who} sells {count}.",
        f"{count} {things} break.",
        f"{who} gives away {count} {things}.",
    )
    return r.choice(came if op == "+" else went)


def word_problem(r: Random) -> Sample:
    """A story whose end is a number."""
    told = story(r)
    value = str(told.value)
    turns = (said("user", told.text), thinking(r, told.steps, value))
    return Sample("word", turns, value, told.text)
