"""The command line: what each command takes and says of itself. The work is done below.

Results go to stdout, everything said along the way to stderr. `main` returns the exit code:
0 done, 1 failed, 2 usage or invalid input, 3 done with row errors, 5 no backend, 6 the plan differs
from the run's; stopped, to be resumed: 4 the token budget is spent, 7 the time limit has passed,
8 cancelled by somebody, 9 tool calls wait for approval, 129, 130 and 143 by a signal (lost
terminal, Ctrl-C, SIGTERM).
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, Group, Parameter

from . import cli_reading, cli_running
from .cli_approve import approve
from .cli_cache import app as cache_app
from .cli_failure import explain_failure, say
from .cli_journal import app as journal
from .cli_operate import COMMANDS
from .cli_options import Home, Json

FIRST_STEPS = """
First steps:

```
tenter doctor                           what this machine can do
tenter explain examples/triage.yaml     what would run, and what it costs
tenter map examples/triage.yaml examples/tickets.csv --out answers.csv
```
"""

app = App(
    name="tenter",
    help="Run agent workflows with as few model calls as their answers need.",
    help_epilogue=FIRST_STEPS,
    help_format="markdown",
    version_flags=(),
    default_parameter=Parameter(show_default=False),
)
RUNNING = Group("Run", sort_key=1)
READING = Group("Look before", sort_key=2)
MEANWHILE = Group("While it runs", sort_key=3)
AFTERWARDS = Group("Look after", sort_key=4)
MACHINE = Group("This machine", sort_key=5)

RUNS = (cli_running.run, cli_running.map, cli_running.resume, cli_running.calibrate)
for place, command in enumerate(RUNS):
    app.command(command, help_epilogue="", group=RUNNING, sort_key=place + 1)
LOOKS = (
    cli_reading.explain,
    cli_reading.validate,
    cli_reading.schema,
    cli_reading.graph,
    cli_reading.simulate,
)
for place, command in enumerate(LOOKS):
    app.command(command, help_epilogue="", group=READING, sort_key=place + 4)


@app.command(name="ls", help_epilogue="", group=AFTERWARDS, sort_key=8)
def list_runs(*, home: Home = None, json: Json = False) -> int:
    """List the runs, the newest first."""
    from .cli_look import list_runs

    return list_runs(home, json)


@app.command(help_epilogue="", group=AFTERWARDS, sort_key=9)
def show(
    run: Annotated[str, Parameter(help="The run's name, or `last`.")],
    /,
    *,
    row: Annotated[
        int | None,
        Parameter(help="What became of this row, step by step; counted from 0, as in the errors."),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Show what a run was of, how far it came and where its tokens went.

    ```
    tenter show last
    tenter show last --row 16
    ```
    """
    from .cli_look import show_row, show_run

    return show_run(run, home, json) if row is None else show_row(run, row, home, json)


for place, (verb, command) in enumerate(COMMANDS.items()):
    group = RUNNING if verb == "retry" else MEANWHILE
    app.command(command, name=verb, help_epilogue="", group=group, sort_key=place + 8)

journal.group = (AFTERWARDS,)
app.command(approve, help_epilogue="", group=AFTERWARDS, sort_key=7)
app.command(journal)
cache_app.group = (AFTERWARDS,)
app.command(cache_app)


@app.command(help_epilogue="", group=MACHINE)
def doctor(
    *,
    backend: Annotated[
        tuple[str, ...],
        Parameter(help="URL of an SGLang or OpenAI-compatible server; may be given several times."),
    ] = (),
    api_key: Annotated[
        str | None, Parameter(help="Environment variable that holds the servers' key.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Check what this machine can do, or with --backend a server, and say what would change it.

    Of a server it tells what its settings mean for pins, priorities, aborts, metrics and several
    replicas, and the flag of the server that would change it.
    """
    from .doctor import report, report_servers

    return report_servers(backend, api_key, json) if backend else report(home, json)


@app.command(help_epilogue="", group=MACHINE)
def version() -> int:
    """Print the version."""
    from importlib.metadata import version as version_of

    print(f"tenter {version_of('tenter')} (Python {sys.version.split()[0]})")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no traceback unless TENTER_DEBUG=1."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    given = sys.argv[1:] if arguments is None else arguments
    tokens = ["@-" if token == "-" else token for token in given]  # a bare hyphen is no option
    if tokens in (["--version"], ["-V"]):
        tokens = ["version"]
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of stdout has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (Exception, BaseExceptionGroup) as error:  # a group may hold cancellations too
        if os.environ.get("TENTER_DEBUG") == "1":
            raise
        return explain_failure(error)
