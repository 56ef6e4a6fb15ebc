"""Jobs that read a text: sentiment, routing, extraction, replies, small talk."""

import json

from .chat import answer, said, thought
from .sample import Random, Sample, interrupted
from .tickets import DEFAULT_TOPICS, TOPIC_LABELS, Ticket, ticket, topics
from .words import (
    KINDS,
    city,
    full_name,
    idle_sentence,
    idle_word,
    invented,
    item,
    join_words,
    listed,
    plural,
)

ASPECTS = listed(
    "food service staff room price delivery screen battery view music packaging support design sound "
    "story camera coffee bed wifi location keyboard plot acting manual quality seat menu garden"
)
PRAISE = listed(
    "great excellent wonderful lovely amazing fantastic superb perfect brilliant good nice pleasant "
    "impressive beautiful delightful outstanding"
)
BLAME = listed(
    "awful terrible bad horrible poor disappointing dreadful broken ugly useless annoying boring "
    "disgusting unpleasant mediocre rude"
)
PLAIN = listed("average ordinary standard usual common acceptable normal typical")
PRAISING_SENTENCES = (
    "I loved the {}.",
    "I really enjoyed the {}.",
    "The {} made me happy.",
    "I recommend the {} to everyone.",
    "Five stars for the {}.",
)
BLAMING_SENTENCES = (
    "I hated the {}.",
    "The {} was a waste of money.",
    "I regret paying for the {}.",
    "The {} made me angry.",
    "One star for the {}.",
)
PLAIN_SENTENCES = (
    "The {} was there.",
    "I have no opinion about the {}.",
    "The {} was as described.",
)
ADVERBS = ("", "", "", "very ", "really ", "quite ", "so ")
SENTIMENT_QUESTIONS = (
    "Is this review positive, negative or neutral?\n\n{}",
    "Is this review positive, negative or neutral?\n{}",
    "Classify the review: {}",
    "Classify the sentiment of this review as positive, negative or neutral.\n\n{}",
    "What is the sentiment of this review?\n\n{}",
    "Sentiment of this review: {}",
    "Classify this review.\n\n{}",
    "{}\n\nIs this review positive, negative or neutral?",
    "Review: {}\nSentiment?",
)
TWO_WAY_QUESTIONS = (
    "Is this review positive or negative?\n\n{}",
    "Does the customer like it? Answer positive or negative.\n\n{}",
)
ROUTE_QUESTIONS = (
    "Which team handles this ticket?\n\n{ticket}",
    "Which team handles this ticket?\n\n{ticket}",
    "Which team handles this ticket?\n{ticket}",
    "Which team should answer this ticket?\n\n{ticket}",
    "Which team is this ticket for?\n\n{ticket}",
    "Route the ticket: {ticket}",
    "Route this ticket to a team.\n\n{ticket}",
    "{ticket}\n\nWhich team handles this ticket?",
)
LISTED_ROUTE_QUESTIONS = (
    "Which team handles this ticket: {labels}?\n\n{ticket}",
    "Which team handles this ticket? Teams: {labels}.\n\n{ticket}",
    "Teams: {labels}\n\nWhich team handles this ticket?\n\n{ticket}",
    "Classify the ticket as {labels}.\n\n{ticket}",
    "Classify this ticket. Labels: {labels}.\n\n{ticket}",
    "Choose one of {labels}.\n\nTicket: {ticket}",
    "Route the ticket to {labels}: {ticket}",
)


def _review_part(r: Random, aspect: str, mood: int) -> str:
    """A sentence about `aspect`: praising (1), blaming (-1) or plain (0)."""
    if r.random() < 0.35:
        by_mood = {1: PRAISING_SENTENCES, -1: BLAMING_SENTENCES, 0: PLAIN_SENTENCES}
        return r.choice(by_mood[mood]).format(aspect)
    negated = mood != 0 and r.random() < 0.15
    words = {1: PRAISE, -1: BLAME, 0: PLAIN}[-mood if negated else mood]
    adjective = ("not " if negated else r.choice(ADVERBS)) + r.choice(words)
    shape = r.choice(("The {} was {}.", "The {} is {}.", "I found the {} {}."))
    return shape.format(aspect, adjective)


def _overall(moods: list[int]) -> str:
    balance = sum(moods)
    return "positive" if balance > 0 else "negative" if balance < 0 else "neutral"


def classify(r: Random) -> Sample:
    """The sentiment of a review of one to five sentences."""
    aspects = r.sample(ASPECTS, r.choice((1, 1, 2, 2, 3, 3, 4, 5)))
    lean = r.choice(((4, 1, 1), (1, 4, 1), (2, 2, 3)))
    moods = r.choices((1, -1, 0), lean, k=len(aspects))
    parts = [_review_part(r, a, m) for a, m in zip(aspects, moods, strict=True)]
    review, label = " ".join(parts), _overall(moods)
    two_way = label != "neutral" and r.random() < 0.25
    question = r.choice(TWO_WAY_QUESTIONS if two_way else SENTIMENT_QUESTIONS).format(review)
    if r.random() < 0.2:
        signs = {1: "+", -1: "-", 0: "0"}
        marks = " ".join(f"{a} {signs[m]}" for a, m in zip(aspects, moods, strict=True))
        steps = f"{marks}\n{moods.count(1)} good, {moods.count(-1)} bad"
        turns = (said("user", f"{question}\nThink first."), thought(steps, label))
    else:
        turns = (said("user", question), answer(label))
    return Sample("classify", turns, label, review)


def _labels(r: Random) -> dict[str, str]:
    """Topics on offer with the names they go by; `other` is one of them most of the time."""
    named = [t for t in topics() if t in TOPIC_LABELS]
    chosen = r.sample(named, r.randint(2, 5))
    if len(chosen) < 3 or r.random() < 0.6:
        chosen.append("other")
    return {topic: r.choice(TOPIC_LABELS[topic]) for topic in chosen}


def route(r: Random) -> Sample:
    """The team for a ticket, among listed labels or the five usual ones."""
    listed = r.random() < 0.55
    labels = _labels(r) if listed else {t: t for t in (*DEFAULT_TOPICS, "other")}
    topic = r.choice([t for t in labels if t != "other"] * 2 + ["other"] * ("other" in labels))
    source = topic if topic != "other" else r.choice([t for t in topics() if t not in labels])
    written = ticket(r, source)
    names = list(labels.values())
    shown = r.choice((", ".join(names), join_words(names, "or"), ", ".join(names)))
    pattern = r.choice(LISTED_ROUTE_QUESTIONS if listed else ROUTE_QUESTIONS)
    question = pattern.format(labels=shown, ticket=written.text)
    return Sample(
        "route", (said("user", question), answer(labels[topic])), labels[topic], written.core
    )


def _record(r: Random) -> dict[str, str | int]:
    thing = item(r)
    return {
        "name": full_name(r),
        "city": city(r),
        "order": r.randint(100, 99999),
        "item": thing,
        "items": plural(thing),
        "count": r.randint(2, 99),
        "price": r.randint(2, 999),
        "email": f"{full_name(r).lower().replace(' ', '.')}@{r.choice(('mail', 'post', 'web'))}.example",
        "date": f"{r.randint(2020, 2030)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}",
    }


SYNONYMS: dict[str, tuple[str, ...]] = {
    "name": ("name", "name", "customer"),
    "city": ("city", "city", "town"),
    "order": ("order", "order_id", "order_number"),
    "item": ("item", "item", "product"),
    "count": ("count", "quantity"),
    "price": ("price", "price", "amount"),
    "email": ("email",),
    "date": ("date",),
}
_FIRST_SENTENCES = (
    ("name city count item", "{name} from {city} ordered {count} {items}."),
    ("name city count item", "We send {count} {items} to {name} in {city}."),
    ("name count item", "{name} bought {count} {items}."),
    ("name city", "{name} lives in {city}."),
    ("city count item", "Please ship {count} {items} to {city}."),
    ("name item", "{name} wants to return a {item}."),
)
_MORE_SENTENCES = (
    ("order", "The order number is {order}."),
    ("order", "See order {order}."),
    ("price", "The price is {price} dollars."),
    ("price", "The total comes to {price} dollars."),
    ("email", "Write to {email}."),
    ("email", "The email address is {email}."),
    ("date", "It was sent on {date}."),
    ("date", "The date is {date}."),
)
EXTRACT_QUESTIONS = (
    "Extract {keys} as JSON.\n\n{text}",
    "Extract {keys} as JSON. {text}",
    "Extract these fields as JSON: {keys}.\n\n{text}",
    "Return a JSON object with {keys}.\n\n{text}",
    "Read the text and give {keys} as JSON.\n\n{text}",
    "{text}\n\nExtract {keys} as JSON.",
)


def extract(r: Random) -> Sample:
    """Fields of a short text as a JSON object, in the order asked for."""
    record = _record(r)
    said_keys, first = r.choice(_FIRST_SENTENCES)
    present, sentences = said_keys.split(), [first]
    for keys, sentence in r.sample(_MORE_SENTENCES, r.randint(0, 5)):
        if keys not in present:
            present.append(keys)
            sentences.insert(r.randint(0, len(sentences)), sentence)
    text = " ".join(sentences).format(**record)
    wanted = r.sample(present, r.randint(1, min(5, len(present))))
    if r.random() < 0.1 and len(present) < len(SYNONYMS):
        absent = r.choice([key for key in SYNONYMS if key not in present])
        wanted.insert(r.randint(0, len(wanted)), absent)
    named = {key: r.choice(SYNONYMS[key]) for key in wanted}
    found = {named[key]: record[key] if key in present else None for key in wanted}
    keys_shown = r.choice((", ".join(named.values()), join_words(list(named.values()))))
    question = r.choice(EXTRACT_QUESTIONS).format(keys=keys_shown, text=text)
    result = json.dumps(found)
    return Sample("extract", (said("user", question), answer(result)), result, f"{text} {wanted}")


_POLICY_PATTERNS = (
    "{Thing} are handled within {n} {unit}.",
    "We answer questions about {thing} within {n} {unit}.",
    "{Thing} are free for orders above {n} dollars.",
    "We refund {thing} within {n} {unit}.",
    "Customers may return {thing} within {n} {unit}.",
    "Please restart the program and send us a screenshot.",
    "A colleague will call back within {n} {unit}.",
    "We replace {thing} at no cost if they are reported within {n} {unit}.",
    "There is a discount of {n} percent on {thing}.",
    "Ask for the order number before anything else.",
    "The fix will be part of version {n}.",
    "We do not change {thing} after {n} {unit}.",
    "Send the details to the {kind} team, which is open until {n} o'clock.",
    "{Thing} over {n} dollars need the approval of a manager.",
)
_POLICY_THINGS = (
    "refunds",
    "late parcels",
    "damaged goods",
    "double charges",
    "invoices",
    "licenses",
    "open orders",
    "lost packages",
    "crashes",
    "team plans",
    "complaints",
    "gift cards",
    "repairs",
    "returns",
)
REPLY_PROMPTS = (
    "{policy}\n\nAnswer this {kind} ticket:\n{ticket}",
    "{policy}\n\nAnswer this {kind} ticket:\n{ticket}",
    "{policy}\n\nAnswer this {kind} ticket:\n{ticket}",
    "{policy}\n\nAnswer this {kind} ticket:\n\n{ticket}",
    "{policy}\n\nAnswer this {kind} ticket as JSON with subject and body:\n{ticket}",
    "Policy: {policy}\n\nAnswer this {kind} ticket:\n{ticket}",
    "{policy}\n\nReply to this {kind} ticket:\n{ticket}",
    "Our policy: {policy}\nWrite a reply to this {kind} ticket:\n{ticket}",
)


def policy(r: Random) -> str:
    """What the company does, in one sentence or two; now and then an arbitrary sentence."""
    if r.random() < 0.2:
        return idle_sentence(r)
    thing = r.choice(_POLICY_THINGS)
    slots = {
        "n": r.randint(2, 99),
        "unit": r.choice(("days", "hours", "weeks")),
        "kind": r.choice(KINDS),
    }
    chosen = r.sample(_POLICY_PATTERNS, 2 if r.random() < 0.15 else 1)
    return " ".join(p.format(thing=thing, Thing=thing.capitalize(), **slots) for p in chosen)


def reply_json(rule: str, kind: str, written: Ticket) -> str:
    """The reply that a ticket gets: greeting, topic, the policy word for word, closing."""
    greeting = f"Hello {written.name}," if written.name else "Hello,"
    about = f"your {written.thing}" + (f", order {written.order}" if written.order else "")
    body = f"{greeting} thank you for your message. {rule} Kind regards, the {kind} team"
    return json.dumps({"subject": f"About {about}", "body": body})


def reply(r: Random) -> Sample:
    """Answer a ticket as JSON, from a policy."""
    topic = r.choice(topics())
    kind = topic if topic in TOPIC_LABELS and r.random() < 0.8 else r.choice(KINDS)
    written, rule = ticket(r, topic), policy(r)
    question = r.choice(REPLY_PROMPTS).format(policy=rule, kind=kind, ticket=written.text)
    result = reply_json(rule, kind, written)
    return Sample(
        "reply", (said("user", question), answer(result)), result, f"{rule} {written.text}"
    )


REPEAT_QUESTIONS = (
    "Repeat this text.\n\n{}",
    "Repeat: {}",
    "Copy the text word for word.\n\n{}",
    "{}\n\nRepeat this text.",
    "Say this again: {}",
)
JSON_REPEAT_QUESTIONS = ("Return this text as JSON.\n\n{}", "{}\n\nGive this text as JSON.")


def _mixed_words(r: Random) -> str:
    """Names, things, numbers and invented words in no order."""
    makers = (invented, full_name, city, item, idle_word, lambda r: str(r.randint(2, 9999)))
    words = [r.choice(makers)(r) for _ in range(r.randint(3, 14))]
    return r.choice((" ", " ", ", ", "\n")).join(words)


def repeat(r: Random) -> Sample:
    """Copy a text, plain or as a JSON string: what replies, extraction and tool calls rest on."""
    makers = (_mixed_words, _mixed_words, policy, idle_sentence)
    text = " ".join(r.choice(makers)(r) for _ in range(r.choice((1, 1, 2))))
    as_json = r.random() < 0.3
    question = r.choice(JSON_REPEAT_QUESTIONS if as_json else REPEAT_QUESTIONS).format(text)
    result = json.dumps({"text": text}) if as_json else text
    return Sample("repeat", (said("user", question), answer(result)), result, text)


_SMALL_TALK = (
    (("Hello", "Hi", "Hello!", "Hi there", "Good morning"), "Hello! What can I do for you?"),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        "I am the tiny example model of Tenter.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?"),
        "I can classify, route, extract, calculate, use tools and answer tickets.",
    ),
    (("Thank you.", "Thanks!", "Thanks a lot.", "Great, thanks"), "You are welcome."),
    (("Goodbye", "Bye", "See you later."), "Goodbye!"),
    (
        ("What is Tenter?", "Tell me about Tenter."),
        "Tenter runs agent workflows and plans their model calls.",
    ),
)


def small_talk(r: Random) -> Sample:
    """A fixed answer to a greeting or a question about the model; a closed set."""
    questions, result = r.choice(_SMALL_TALK)
    question = r.choice(questions)
    return Sample("small_talk", (said("user", question), answer(result)), result, question)


def without_thinking(sample: Sample) -> Sample:
    """The same sample as the template writes it with `enable_thinking=False`."""
    turn = sample.turns[-1]
    closed = interrupted("", turn.text)
    return Sample(sample.job, (*sample.turns[:-1], closed), sample.answer, sample.key)
