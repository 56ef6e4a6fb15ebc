"""Writes examples/tickets.csv: made-up support tickets of a made-up shop, the same ones every time.

python examples/make_tickets.py
"""

import csv
import random
from pathlib import Path

ROWS = 360
OUT = Path(__file__).parent / "tickets.csv"

# What a ticket is about -> the sentences that say it; `{}` is one of the things.
MATTERS = {
    "billing": (
        (
            "The {} is wrong.",
            "I was charged twice, please look at the {}.",
            "I still wait for the {}.",
        ),
        ("invoice", "refund", "receipt", "payment"),
    ),
    "bug": (
        ("The {} crashes.", "The {} shows an error.", "The {} does not load any more."),
        ("app", "website", "dashboard", "export"),
    ),
    "shipping": (
        ("Where is my {}?", "My {} is late.", "The {} came damaged.", "The {} never arrived."),
        ("parcel", "package", "order", "delivery"),
    ),
    "sales": (
        ("What does a {} cost?", "Do you offer a discount on a {}?", "I want to buy a {}."),
        ("license", "team plan", "premium plan", "quote"),
    ),
    "other": (
        ("Thank you, your {} made my day.", "What are the opening hours of your {}?"),
        ("team", "shop", "newsletter", "event"),
    ),
}
GREETINGS = ("", "", "Hello,", "Hi,", "Dear team,")
ASIDES = ("", "", "Please help.", "Please answer soon.", "It started on Monday.")
NAMES = ("Ada", "Boris", "Carla", "Dana", "Elif", "Felix", "Gina", "Hugo", "Ines", "Milan")


def ticket(r: random.Random) -> str:
    sentences, things = MATTERS[r.choice(tuple(MATTERS))]
    said = [r.choice(GREETINGS), r.choice(sentences).format(r.choice(things)), r.choice(ASIDES)]
    if r.random() < 0.4:
        said.append(f"My order number is {r.randint(1000, 99999)}.")
    if r.random() < 0.3:
        said.append(f"Thanks, {r.choice(NAMES)}")
    return " ".join(part for part in said if part)


def main() -> None:
    r = random.Random(7)
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "ticket"))
        # People write the same thing more than once: one row in six repeats an earlier one.
        written: list[str] = []
        for number in range(1, ROWS + 1):
            text = r.choice(written) if number > 20 and r.random() < 1 / 6 else ticket(r)
            written.append(text)
            writer.writerow((f"T{number:04d}", text))


if __name__ == "__main__":
    main()
