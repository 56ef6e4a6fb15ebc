"""Support tickets: a topic, what the customer has trouble with, and the words around it."""

from dataclasses import dataclass

from .sample import Random
from .words import CITIES, city, first_name, item

DEFAULT_TOPICS = ("billing", "bug", "shipping", "sales")

# topic -> (things a ticket is about, what can be said of them); every pair makes a sentence
_COMPLAINTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "billing": (
        (
            "invoice",
            "bill",
            "payment",
            "refund",
            "receipt",
            "subscription fee",
            "credit card charge",
        ),
        (
            "The {} is wrong.",
            "My {} shows the wrong amount.",
            "I do not understand the {} of this month.",
            "The {} appears twice on my statement.",
            "I was charged twice, please look at the {}.",
            "I paid too much, so please correct the {}.",
            "I want my money back and the {} corrected.",
            "The tax on the {} is missing.",
            "I still wait for the {}.",
            "My card was declined, is the {} open?",
        ),
    ),
    "bug": (
        ("app", "website", "login page", "search", "export", "dashboard", "latest update"),
        (
            "The {} crashes.",
            "The {} shows an error.",
            "The {} does not load any more.",
            "The {} freezes when I click save.",
            "I see a blank screen in the {}.",
            "I cannot log in, the {} says the password is wrong.",
            "The button in the {} does nothing.",
            "The {} is very slow and then stops.",
            "There is an error message in the {}.",
            "The {} lost my data.",
        ),
    ),
    "shipping": (
        ("parcel", "package", "order", "delivery", "shipment", "box", "letter"),
        (
            "Where is my {}?",
            "My {} is late.",
            "The {} never arrived.",
            "The {} came damaged.",
            "The {} went to the wrong address.",
            "The tracking number of the {} is invalid.",
            "Please send the {} to another address.",
            "The courier left the {} in the rain.",
            "The {} is stuck in customs.",
            "When will the {} be delivered?",
        ),
    ),
    "sales": (
        ("license", "team plan", "premium plan", "product demo", "upgrade", "bulk order", "quote"),
        (
            "I want to buy a {}.",
            "What does a {} cost?",
            "Do you offer a discount on a {}?",
            "Can you send us an offer for a {}?",
            "We are interested in a {}.",
            "Is there a {} for schools?",
            "We would like a {} for ten people.",
            "Which {} do you recommend for us?",
            "Could someone call us about a {}?",
            "We compare prices for a {}.",
        ),
    ),
    "hiring": (
        ("job", "internship", "position", "application", "interview", "resume"),
        (
            "I would like to apply for a {}.",
            "Have you read my {} yet?",
            "I have a question about the {}.",
            "I send you my {} and a cover letter.",
            "When do I hear about the {} from your recruiter?",
            "Are you hiring, and is there a {} for me?",
        ),
    ),
    "legal": (
        ("contract", "privacy notice", "data request", "trademark", "license terms", "agreement"),
        (
            "My lawyer asks about the {}.",
            "We need a signed {}.",
            "The {} breaks the law, says our lawyer.",
            "Please delete my personal data and confirm the {}.",
            "Who in your legal department handles the {}?",
            "There is a clause in the {} that we cannot accept.",
        ),
    ),
    "praise": (
        ("team", "shop", "newsletter", "office", "event", "blog"),
        (
            "I just want to say that I like your {}.",
            "Thank you, your {} made my day.",
            "What are the opening hours of your {}?",
            "Greetings to everybody in your {}.",
            "I read about your {} in the newspaper.",
            "Can I visit your {} with my class?",
        ),
    ),
}
TOPIC_LABELS: dict[str, tuple[str, ...]] = {
    "billing": ("billing", "billing", "payments", "finance", "invoicing"),
    "bug": ("bug", "bug", "technical", "tech", "engineering"),
    "shipping": ("shipping", "shipping", "delivery", "logistics"),
    "sales": ("sales", "sales", "commercial"),
    "hiring": ("hiring", "jobs", "recruiting"),
    "legal": ("legal", "law"),
    "other": ("other", "other", "general", "none"),
}
_GREETINGS = ("Hello,", "Hi,", "Hello there,", "Good morning,", "Dear team,", "Hi team,")
_ASIDES = (
    "I have been a customer for {n} years.",
    "This is the second time I write.",
    "I am in a hurry.",
    "Please answer soon.",
    "It started on Monday.",
    "I bought a {item} some time ago.",
    "I live in {city}.",
    "Please help.",
    "Can you look into it?",
    "My neighbor has the same question.",
)
_CLOSINGS = ("Thanks, {}", "Regards, {}", "Best wishes, {}", "Thank you, {}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a customer wrote."""

    topic: str
    thing: str  # the noun that the ticket is about
    core: str  # the one sentence that decides the topic
    text: str
    name: str = ""  # the customer's first name where the ticket is signed
    order: str = ""  # the order number where one is given


def topics() -> tuple[str, ...]:
    """All topics; those without a label of their own count as `other`."""
    return tuple(_COMPLAINTS)


def ticket(r: Random, topic: str) -> Ticket:
    """A ticket of one to five sentences about `topic`."""
    things, complaints = _COMPLAINTS[topic]
    thing, complaint = r.choice(things), r.choice(complaints)
    core = complaint.format(thing)
    name = first_name(r) if r.random() < 0.35 else ""
    order = str(r.randint(100, 99999)) if r.random() < 0.35 else ""
    sentences = [core]
    for _ in range(r.choice((0, 0, 1, 1, 2))):
        sentences.insert(r.randint(0, len(sentences)), _aside(r))
    if order:
        about = r.choice(("It is about order {}.", "My order number is {}.", "Order {}."))
        sentences.insert(r.randint(0, len(sentences)), about.format(order))
    if r.random() < 0.4:
        sentences.insert(0, r.choice(_GREETINGS))
    if name:
        sentences.append(r.choice(_CLOSINGS).format(name))
    text = " ".join(sentences)
    return Ticket(topic, thing, core, text.lower() if r.random() < 0.05 else text, name, order)


def _aside(r: Random) -> str:
    where = r.choice(CITIES) if r.random() < 0.5 else city(r)
    return r.choice(_ASIDES).format(n=r.randint(2, 20), item=item(r), city=where)
