"""`tenter approve`: look at the calls that a run has stopped at, and answer for them."""

import asyncio
import json as jsonlib
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from .cli_failure import going_on, say
from .cli_options import Home, Json, Run
from .errors import InvalidInput


def approve(
    run: Run,
    /,
    *ids: Annotated[str, Parameter(help="The calls to answer for, as the list names them.")],
    every: Annotated[
        bool,
        Parameter(name="--all", help="Answer for all that have not begun.", negative=()),
    ] = False,
    deny: Annotated[
        bool, Parameter(help="They may not run; the model is told so.", negative=())
    ] = False,
    result: Annotated[str | None, Parameter(help="It had its effect, and gave this: JSON.")] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """List the tool calls that a run has stopped at, or approve of some.

    The answers are recorded; `tenter resume` acts on them. The run must not be going on.

    Of a call that was started and cut off the question is whether it had its effect. To approve is
    to say that it had none: it is made. With `--result` it had, and gave that; with `--deny` nobody
    knows: the model is told so, and the call is not made again.

    ```
    tenter approve last
    tenter approve last 3f2a9c01 --deny
    tenter approve last --all
    tenter approve last 77b0c2d4 --result '"receipt 12"'
    ```
    """
    from .approvals import NOT_GIVEN, answer, chosen, questions, shown
    from .journal.store import Store

    if every and ids:
        raise InvalidInput("--all answers for all: leave out the names, or --all")
    gave = NOT_GIVEN if result is None else _result(result)
    store = Store(home)
    name = store.find(run)
    asked = questions(store, name)
    picked = [each for each in asked if not each.began] if every else chosen(asked, ids)
    if result is not None and (deny or len(picked) != 1 or not picked[0].began):
        raise InvalidInput("--result is for one call that was started and cut off: say which")
    for question in picked if picked else asked:
        record = {"type": "approval", **asdict(question)}
        text = jsonlib.dumps(record) if json else "\n".join(shown(question))
        print(text)
    if not asked:
        say("no call waits for approval")
    elif picked:
        asyncio.run(answer(store, name, picked, not deny, gave))
        said = "denied" if deny else "approved" if result is None else "answered"
        again = going_on(store.info(name), home, any(question.began for question in picked))
        say(f"{said}: {len(picked):,}; to go on: {again}")
    elif deny:
        raise InvalidInput("--deny: say which, or --all")
    elif every:
        say("all that wait were started and cut off: answer for each by its name")
    else:
        say(f"to answer: tenter approve {name} NAME ... [--deny], or --all")
    return 0


def _result(text: str) -> Any:
    """Raises InvalidInput for what is not JSON."""
    from .run.codec import decode

    try:
        return decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--result is JSON, such as '\"a text\"': {error}") from None
