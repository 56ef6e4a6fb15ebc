"""Jobs that call tools and use what they return, in loops of one to about a dozen calls."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .arithmetic import apply, asked_sum, random_terms, story, total_of, written
from .chat import Turn, answer, call_text, said, thought
from .reading import policy
from .sample import Random, Sample, Tool
from .words import KINDS, city, items, join_words, plural

FAULT_SHARE = 0.01  # tool results that are an error, after which the call is repeated


@dataclass(frozen=True, slots=True)
class ToolNames:
    """One thing a tool can do, and the ways in which it may be called and described."""

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    descriptions: tuple[str, ...]
    kind: str = "string"


CALCULATOR = ToolNames(
    ("calculator", "calculator", "calculate", "evaluate", "calc"),
    ("expression", "expression", "formula"),
    ("Compute an arithmetic expression.", "Evaluate a formula.", "Calculates."),
)
PRICES = ToolNames(
    ("lookup", "price_of", "get_price", "price", "find_price"),
    ("item", "key", "product", "name"),
    ("The price of an item.", "Look up a price.", "Find what an item costs in dollars."),
)
STOCK = ToolNames(
    ("stock", "check_stock", "get_stock", "inventory"),
    ("item", "product", "name"),
    ("How many are in stock.", "Look into the warehouse."),
)
ORDERS = ToolNames(
    ("get_order", "order_status", "find_order", "lookup_order"),
    ("order", "order_id", "number"),
    ("Find an order.", "The state of an order."),
    "integer",
)
POLICIES = ToolNames(
    ("policy_for", "get_policy", "policy"),
    ("kind", "topic", "team"),
    ("The policy for a kind of ticket.", "Look up a policy."),
)
DISTRACTORS = (
    ToolNames(("weather", "get_weather"), ("city", "place"), ("The weather in a city.",)),
    ToolNames(("send_email", "notify"), ("text", "to"), ("Send a message.",)),
    ToolNames(("search", "web_search"), ("query", "q"), ("Search the web.",)),
    ToolNames(("translate",), ("text",), ("Translate a text.",)),
    ToolNames(("shell", "run"), ("command",), ("Run a command.",)),
    ToolNames(("read_file",), ("path",), ("Read a file.",)),
)


@dataclass(slots=True)
class Session:
    """A conversation with tools while it is being written down."""

    r: Random
    turns: list[Turn] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    tools: list[Tool] = field(default_factory=list)

    def offer(self, names: ToolNames) -> tuple[str, str]:
        """List a tool and return its name and its parameter."""
        name, parameter = self.r.choice(names.names), self.r.choice(names.parameters)
        self.tools.append(_schema(self.r, names, name, parameter))
        return name, parameter

    def call(self, tool: tuple[str, str], value: str | int, result: str) -> None:
        """The assistant calls a tool and gets `result`, sometimes only at the second try."""
        text = call_text(tool[0], {tool[1]: value})
        if self.r.random() < FAULT_SHARE:
            fault = self.r.choice(("error: timeout", "Error: try again", '{"error": "busy"}'))
            self.turns += [answer(text), said("tool", fault)]
        self.turns += [answer(text), said("tool", result)]
        self.facts[text] = result

    def finish(self, job: str, key: str, closing: Turn, final: str) -> Sample:
        """The finished sample, with its tools in random order among some that are not needed."""
        known = {tool["function"]["name"] for tool in self.tools}
        for names in self.r.sample(DISTRACTORS, self.r.choice((0, 0, 0, 1, 1, 3))):
            if not known & set(names.names):
                self.offer(names)
        self.r.shuffle(self.tools)
        self.turns.append(closing)
        return Sample(job, tuple(self.turns), final, key, tools=tuple(self.tools), facts=self.facts)


def _schema(r: Random, names: ToolNames, name: str, parameter: str) -> Tool:
    """A JSON function schema, in one of the spellings that libraries give it."""
    spec: dict[str, Any] = {"type": names.kind}
    if r.random() < 0.1:
        spec["title"] = parameter.replace("_", " ").title()
    parameters: dict[str, Any] = {"type": "object", "properties": {parameter: spec}}
    if r.random() < 0.8:
        parameters["required"] = [parameter]
    if r.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if r.random() < 0.6:
        function["description"] = r.choice(names.descriptions)
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def _amount(r: Random) -> Callable[[int], str]:
    """How this run's lookup tool writes a number."""
    return r.choice(
        (
            str,
            str,
            lambda n: json.dumps({"price": n}),
            lambda n: json.dumps({"result": n}),
            lambda n: f"{n} dollars",
        )
    )


def agent_total(r: Random) -> Sample:
    """Look up one to six prices and add them, with a calculator or by visible steps."""
    session, counted = Session(r), r.random() < 0.6
    names = items(r, r.choice((1, 2, 2, 3, 3, 4, 5, 6)))
    counts = [r.randint(2, 60) if counted else 1 for _ in names]
    prices = [r.randint(2, 199) for _ in names]
    session.turns.append(said("user", _shopping_question(r, names, counts)))
    lookup, amount = session.offer(PRICES), _amount(r)
    for name, price in zip(names, prices, strict=True):
        session.call(lookup, name, amount(price))
    total = sum(c * p for c, p in zip(counts, prices, strict=True))
    final = f"The total is {total}."
    closing = answer(final)
    products = [f"{c}*{p}" if counted else str(p) for c, p in zip(counts, prices, strict=True)]
    if counted or len(names) > 1:
        if r.random() < 0.75:
            session.call(session.offer(CALCULATOR), "+".join(products), str(total))
        else:
            closing = thought(_total_steps(counts, prices), final)
    return session.finish("agent_total", session.turns[0].text, closing, final)


def _shopping_question(r: Random, names: list[str], counts: list[int]) -> str:
    if counts[0] == 1:
        return r.choice(
            (
                "What is the total price of {}?",
                "Add up the prices of {}.",
                "How much do {} cost together?",
                "Sum the prices of these items: {}.",
            )
        ).format(join_words(names))
    listed = join_words([f"{c} {plural(n)}" for c, n in zip(counts, names, strict=True)])
    return r.choice(
        (
            "What is the total price of {}?",
            "I buy {}. What do I pay?",
            "How much do {} cost?",
            "A customer orders {}. What is the total?",
        )
    ).format(listed)


def _total_steps(counts: list[int], prices: list[int]) -> str:
    lines, parts = [], prices
    if counts[0] != 1:
        parts = [c * p for c, p in zip(counts, prices, strict=True)]
        lines = [f"{c}*{p}={c * p}" for c, p in zip(counts, prices, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        lines.append(f"{total}+{part}={total + part}")
        total += part
    return "\n".join(lines) or str(total)


def agent_steps(r: Random) -> Sample:
    """A word problem or a sum, each operation done by the calculator."""
    session = Session(r)
    calculator = session.offer(CALCULATOR)
    if r.random() < 0.6:
        told = story(r)
        session.turns.append(said("user", told.text))
        for a, op, b in told.operations:
            session.call(calculator, f"{a}{op}{b}", str(apply(a, op, b)))
        value, key = told.value, told.text
    else:
        terms = random_terms(r, r.randint(2, 8))
        session.turns.append(said("user", asked_sum(r, terms)))
        value, key = total_of(terms), written(terms)
        session.call(calculator, written(terms, ""), str(value))
    final = f"The answer is {value}."
    return session.finish("agent_steps", key, answer(final), final)


def agent_stock(r: Random) -> Sample:
    """Check one to twelve items one after the other and name those that are out of stock."""
    session = Session(r)
    names = items(r, r.choice((1, 2, 3, 3, 4, 5, 6, 8, 10, 12)))
    asked = r.choice(
        ("Which of {} are out of stock?", "Check the stock of {}. Which are sold out?")
    )
    session.turns.append(said("user", asked.format(join_words(names))))
    stock, amount = session.offer(STOCK), _stock_amount(r)
    left = [0 if r.random() < 0.3 else r.randint(1, 300) for _ in names]
    for name, count in zip(names, left, strict=True):
        session.call(stock, name, amount(count))
    missing = [n for n, count in zip(names, left, strict=True) if count == 0]
    final = f"Out of stock: {', '.join(missing)}." if missing else "All of them are in stock."
    return session.finish("agent_stock", session.turns[0].text, answer(final), final)


def _stock_amount(r: Random) -> Callable[[int], str]:
    return r.choice((str, str, lambda n: json.dumps({"stock": n}), lambda n: f"{n} left"))


ORDER_STATES = ("open", "paid", "packed", "shipped", "delivered", "returned", "cancelled")


def agent_lookup(r: Random) -> Sample:
    """One call and an answer in words: the state of an order, a price, a policy."""
    session = Session(r)
    match r.randrange(3):
        case 0:
            final = _order_question(session)
        case 1:
            name, price = items(r, 1)[0], r.randint(2, 999)
            asked = r.choice(("What does a {} cost?", "What is the price of a {}?"))
            session.turns.append(said("user", asked.format(name)))
            session.call(session.offer(PRICES), name, _amount(r)(price))
            final = f"It costs {price} dollars."
        case _:
            kind, rule = r.choice(KINDS), policy(r)
            asked = r.choice(("What is our policy for {} tickets?", "Which policy holds for {}?"))
            session.turns.append(said("user", asked.format(kind)))
            session.call(session.offer(POLICIES), kind, rule)
            final = rule
    return session.finish("agent_lookup", f"{session.turns[0].text} {final}", answer(final), final)


def _order_question(session: Session) -> str:
    r = session.r
    number, state, place = r.randint(100, 99999), r.choice(ORDER_STATES), city(r)
    asked = r.choice(("Where is order {}?", "What is the state of order {}?", "Check order {}."))
    session.turns.append(said("user", asked.format(number)))
    record = {"order": number, "status": state, "city": place}
    if r.random() < 0.5:
        record = {"status": state, "city": place}
    session.call(session.offer(ORDERS), number, json.dumps(record))
    return f"Order {number} is {state} in {place}."


def repeat_lookups(r: Random) -> Sample:
    """A long session: several requests in one conversation with the same tools."""
    session = Session(r)
    lookup, calculator, amount = session.offer(PRICES), session.offer(CALCULATOR), _amount(r)
    final, requests = "", []
    for _ in range(r.randint(2, 5) if r.random() < 0.8 else r.randint(6, 12)):
        if final:
            session.turns.append(answer(final))
        names = items(r, r.randint(1, 3))
        counts, prices = [r.randint(2, 60) for _ in names], [r.randint(2, 199) for _ in names]
        requests.append(_shopping_question(r, names, counts))
        session.turns.append(said("user", requests[-1]))
        for name, price in zip(names, prices, strict=True):
            session.call(lookup, name, amount(price))
        total = sum(c * p for c, p in zip(counts, prices, strict=True))
        products = "+".join(f"{c}*{p}" for c, p in zip(counts, prices, strict=True))
        session.call(calculator, products, str(total))
        final = f"The total is {total}."
    return session.finish("agent_session", " ".join(requests), answer(final), final)
