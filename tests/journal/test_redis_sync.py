"""Records that must be on Redis's disk: WAITAOF, on the connection that wrote (Redis 7.2)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from journals import made_manifest

from tenter.runtime.journal import RowRecord
from tenter.runtime.journal.address import parse_redis
from tenter.runtime.journal.redis import RedisJournal
from tenter.runtime.journal.redis_link import Server
from tenter.runtime.journal.redis_sender import Held

pytestmark = pytest.mark.anyio
pytest.importorskip("redis")

Command = list[bytes]


@asynccontextmanager
async def scripted(reply: Callable[[int, Command], bytes]) -> AsyncIterator[str]:
    """A server that gives each command (with its connection's number) what `reply` says."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        while line := await reader.readline():
            command: Command = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                command.append((await reader.readexactly(size + 2))[:-2])
            writer.write(reply(number, command))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?timeout_s=1"
    finally:
        server.close()


async def test_a_record_waits_until_the_disk_has_it():
    asked: list[tuple[int, bytes]] = []
    fsyncs = iter([b":0\r\n", b":0\r\n", b":1\r\n", b":1\r\n"])

    def reply(connection: int, command: Command) -> bytes:
        if command[0] == b"WAITAOF":
            asked.append((connection, command[0]))
            return b"*2\r\n" + next(fsyncs) + b":0\r\n"
        if command[0] == b"EVALSHA":
            asked.append((connection, b"seq " + command[5] if len(command) > 6 else b"release"))
            return b"*1\r\n$2\r\nok\r\n"
        return b"+OK\r\n"

    async with scripted(reply) as url:
        server = Server((7, 2), "waitaof")
        journal = RedisJournal(parse_redis(url), made_manifest(), Held("1-a"), server)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        journal.record(RowRecord(0, b"1"), lambda: done.set_result(None), sync=True)
        await done
        assert [what for _, what in asked] == [b"seq 1", b"WAITAOF"] * 3  # the same group, again
        assert all(
            first[0] == second[0] for first, second in zip(asked[::2], asked[1::2], strict=True)
        )
        await journal.set_status("done", {})
        assert [what for _, what in asked[6:]] == [b"seq 2", b"WAITAOF"]
        await journal.close()
