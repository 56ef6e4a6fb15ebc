"""A run of one row with a journal, so that tests may stop it and take it up again."""

from typing import Any

from tenter.runtime.run.control import Control
from tenter.runtime.run.local import open_host
from tenter.runtime.run.program import Programs
from tenter.runtime.run.rows import Limits, Row, RowRun


async def rows(flow: Any, backend: Any, journal: Any, resumed: bool = False) -> dict[int, Any]:
    class Sink:
        held = 0

        def __init__(self) -> None:
            self.values: dict[int, Any] = {}

        def put(self, row: Row, value: Any, error: str | None) -> None:
            assert error is None, error
            self.values[row.row] = value

    async with open_host({"default": backend}, journal=journal, resumed=resumed) as host:
        sink = Sink()
        run = RowRun(Programs(host, flow), journal, sink, Control(), (), Limits(), resumed=resumed)
        await run.run(iter([Row(0, {}, {"x": "0"})]))
    return sink.values
