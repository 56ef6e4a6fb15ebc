"""`tenter approve`: look at the calls that a run has stopped at, and answer for them."""

import asyncio
import json as jsonlib
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from .cli_failure import say
from .cli_options import Home, Json, Run
from .errors import InvalidInput


def approve(
    run: Run,
    /,
    *ids: Annotated[str, Parameter(help="The calls to answer for, as the list names them.")],
    every: Annotated[
        bool, Parameter(name="--all", help="Answer for all that wait.", negative=())
    ] = False,
    deny: Annotated[
        bool, Parameter(help="They may not run; the model is told so.", negative=())
    ] = False,
    home: Home = None,
    json: Json = False,
) -> int:
    """List the tool calls that a run has stopped at, or approve of some.

    The answers are recorded; `tenter resume` acts on them. The run must not be going on.

    ```
    tenter approve last
    tenter approve last 3f2a9c01 --deny
    tenter approve last --all
    ```
    """
    from .approvals import answer, chosen, questions, shown
    from .journal.store import Store

    if every and ids:
        raise InvalidInput("--all answers for all: leave out the names, or --all")
    store = Store(home)
    name = store.find(run)
    asked = questions(store, name)
    picked = asked if every else chosen(asked, ids)
    for question in picked if picked else asked:
        record = {"type": "approval", **asdict(question)}
        text = jsonlib.dumps(record) if json else "\n".join(shown(question))
        print(text)
    if not asked:
        say("no call waits for approval")
    elif picked:
        asyncio.run(answer(store, name, picked, not deny))
        say(f"{'denied' if deny else 'approved'}: {len(picked):,}; to go on: tenter resume {name}")
    elif deny:
        raise InvalidInput("--deny: say which, or --all")
    else:
        say(f"to answer: tenter approve {name} NAME ... [--deny], or --all")
    return 0
