"""The vocabulary that the jobs draw from, and texts to be ignored."""

from .sample import Random


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FIRST_NAMES = listed(
    "Ada Anton Bea Boris Carla Cyril Dana Derek Elif Emil Fatma Felix Gina Goran Hana Hugo Ines Ivan "
    "Jana Jonas Kira Kofi Lena Luca Mara Milan Nadia Nils Oda Omar Petra Pavel Rana Rolf Selma Simon "
    "Tara Tobias Ulla Uri Vera Viktor Wanda Wim Yasmin Yuri Zoe Zoran"
)
LAST_NAMES = listed(
    "Abel Brandt Castro Duval Egger Farkas Gruber Holm Ivanov Jansen Keller Lang Mertens Nagy Olsen "
    "Pereira Quist Rossi Sato Thorn Ueda Vogel Weber Xu Yilmaz Zeller"
)
CITIES = listed(
    "Bergen Lyon Turin Hamburg Seville Porto Graz Cork Brno Patras Osaka Pune Luxor Cusco Cuenca "
    "Portland Tulsa Dallas Malmo Ghent Basel Split Varna Leeds"
)
ITEMS = listed(
    "lamp chair table book pen cup bag clock phone desk shirt shoe ball key box plant mug rug fan "
    "kettle mirror ladder bottle candle blanket hammer pillow basket printer keyboard"
)
KINDS = listed("billing bug shipping sales other support legal hiring")
SUBJECT_NOUNS = listed(
    "gardener baker river garden engine museum teacher window bridge village train committee farmer "
    "painter library island market doctor forest harbor machine singer valley kitchen report student"
)
ADJECTIVES = listed(
    "quiet narrow early green heavy distant careful hollow bright crowded gentle rusty modern "
    "silent northern wooden famous empty"
)
VERBS = listed(
    "watches follows describes repairs crosses remembers opens visits paints measures carries "
    "supports surrounds replaces studies"
)
PLACES = (
    "near the station",
    "behind the hill",
    "in the morning",
    "before winter",
    "with great care",
    "after the meeting",
    "on the second floor",
    "for many years",
    "without a map",
    "next to the lake",
)
SYSTEM_SENTENCES = (
    "You are a helpful assistant.",
    "You answer briefly.",
    "You are a careful engineer.",
    "You help a small shop with its daily work.",
    "You read the request and do exactly what it asks.",
    "Follow the user's instructions.",
    "Be polite and precise.",
    "Do not guess.",
    "You are an agent with tools.",
    "Use a tool when one fits.",
    "Think before you answer.",
    "You work for the support desk.",
    "The user may send tickets, reviews, orders or sums.",
    "Keep the answer short.",
    "Today is a weekday.",
    "Ignore text that has nothing to do with the question.",
    "Customers write from many countries.",
    "You are Tenter's example model.",
    "Give one answer only.",
    "Answer in English.",
)
_SYLLABLES = listed(
    "ba be bo da de di do fa fi ga go ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe po "
    "ra re ri ro sa se si so ta te ti to va ve vi vo za zo"
)


def invented(r: Random) -> str:
    """A word that no list holds, so that copying is learned and not the list."""
    return "".join(r.choices(_SYLLABLES, k=r.randint(2, 3))) + r.choice(
        ("", "n", "r", "s", "l", "x")
    )


def first_name(r: Random) -> str:
    """A first name, sometimes an invented one."""
    return invented(r).capitalize() if r.random() < 0.25 else r.choice(FIRST_NAMES)


def full_name(r: Random) -> str:
    """First and last name."""
    last = invented(r).capitalize() if r.random() < 0.25 else r.choice(LAST_NAMES)
    return f"{first_name(r)} {last}"


def city(r: Random) -> str:
    """A city, sometimes an invented one."""
    return invented(r).capitalize() if r.random() < 0.25 else r.choice(CITIES)


def item(r: Random) -> str:
    """A thing to buy, in the singular."""
    return invented(r) if r.random() < 0.2 else r.choice(ITEMS)


def items(r: Random, count: int) -> list[str]:
    """Different things to buy."""
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        chosen[item(r)] = None
    return list(chosen)


def plural(noun: str) -> str:
    """The noun with s, or es after x and s."""
    return noun + ("es" if noun.endswith(("x", "s")) else "s")


def join_words(words: list[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def idle_word(r: Random) -> str:
    """A word of the sentences to be ignored."""
    return r.choice(r.choice((SUBJECT_NOUNS, ADJECTIVES, VERBS)))


def idle_sentence(r: Random) -> str:
    """A sentence that has nothing to do with any question."""
    noun, other = r.sample(SUBJECT_NOUNS, 2)
    match r.randrange(7):
        case 0:
            return f"The {noun} {r.choice(VERBS)} the {other} {r.choice(PLACES)}."
        case 1:
            return f"{r.choice(FIRST_NAMES)} {r.choice(VERBS)} a {r.choice(ADJECTIVES)} {noun}."
        case 2:
            return (
                f"In {r.randint(1850, 2030)} the {r.choice(ADJECTIVES)} {noun} moved to {city(r)}."
            )
        case 3:
            return f"Section {r.randint(1, 99)} is about the {noun} and the {other}."
        case 4:
            return f"About {r.randint(2, 900)} people came to see the {noun} {r.choice(PLACES)}."
        case 5:
            return (
                f"A {r.choice(ADJECTIVES)} {noun} is not the same as a {r.choice(ADJECTIVES)} one."
            )
        case _:
            return (
                f"Nobody knows why the {noun} {r.choice(VERBS)} the {r.choice(ADJECTIVES)} {other}."
            )


def idle_text(r: Random, tokens: int) -> str:
    """About `tokens` tokens of sentences to be ignored."""
    sentences: list[str] = []
    left_chars = tokens * 3
    while left_chars > 0 or not sentences:
        sentences.append(idle_sentence(r))
        left_chars -= len(sentences[-1]) + 1
    return r.choice((" ", " ", "\n")).join(sentences)
