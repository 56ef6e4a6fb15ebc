"""The runs in a Redis: their names, their leases, and what `ls` and `show` see of them."""

import itertools
import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidInput, JournalError
from .address import RedisAddress
from .base import JOURNAL_VERSION, Entry, Manifest, RunInfo, RunStatus, Superseded
from .owner import Owner, is_dead, read_owner, this_process
from .redis import RedisJournal
from .redis_format import Argument, Keys
from .redis_link import RedisAway, Server, answering, check_server, connect
from .redis_scripts import CLAIM, COMMIT, CREATE, RELEASE, Script
from .redis_sender import LEASE_S, Held
from .redis_upkeep import check_redis, compact_redis, entries_of_redis
from .results import Bounds
from .results_redis import RedisResultStore
from .upkeep import Checked, Compacted

_log = logging.getLogger(__name__)

MARK = "acknowledged"  # the file beside a trace: how many records Redis has acknowledged
_LEASE_MS = int(LEASE_S * 1000)
_PIECE = 256  # hashes that are counted at once


class RedisRuns:
    """The runs in the Redis of `address`; `folder` is where their traces lie on this machine."""

    def __init__(self, address: RedisAddress, folder: Path) -> None:
        self._address = address
        self._folder = folder

    @property
    def shown(self) -> str:
        return self._address.shown

    def server(self) -> Server:
        """What the Redis is. Raises JournalError for one that cannot hold a journal."""
        with self._there():
            return self._server

    def names(self) -> tuple[str, ...]:
        with self._there() as client:
            return tuple(name.decode() for name in client.zrange(self._index, 0, -1))

    def has(self, run: str) -> bool:
        with self._there() as client:
            return bool(client.exists(self._keys(run).about))

    def create(
        self, manifest: Manifest, on_failure: Callable[[JournalError], None] | None
    ) -> RedisJournal:
        self._make_folder(manifest.run)
        token = f"1-{secrets.token_hex(8)}"
        text = msgspec.json.encode(manifest)
        owner = this_process().text()
        with self._there() as client:
            server = self._server
            keys = self._keys(manifest.run)
            answer = _run(client, CREATE, keys, token, owner, _LEASE_MS, text, JOURNAL_VERSION)
            if answer[0] != b"created":
                raise JournalError(f"run {manifest.run} exists already; resume it instead")
            client.zadd(self._index, {manifest.run: 0})
        return self._journal(manifest, Held(token), server, on_failure)

    def open(
        self, run: str, on_failure: Callable[[JournalError], None] | None
    ) -> tuple[Manifest, RedisJournal]:
        self._make_folder(run)
        with self._there() as client:
            server = self._server
            about = self._about(client, run)
            manifest = self._manifest(run, about)
            held = self._claim(client, run, about)
        if held.lost:
            _log.warning(
                "run %s: %s has lost at least %d records; they are done again",
                run,
                self.shown,
                held.lost,
            )
        return manifest, self._journal(manifest, held, server, on_failure)

    def info(self, run: str) -> RunInfo:
        with self._there() as client:
            about = self._about(client, run)
            keys = self._keys(run)
            failed = int(client.scard(keys.failed))
            finished = self._finished(client, keys)
            seconds, micros = client.time()
        try:
            status = msgspec.convert(about.get("status", b"").decode(), RunStatus)
            summary = msgspec.json.decode(about.get("summary", b"{}"), type=dict[str, float])
            until_s = float(about["until"]) / 1000
        except (msgspec.MsgspecError, KeyError, ValueError) as error:
            raise self._damaged(run, error) from error
        info = RunInfo(self._manifest(run, about), status, finished - failed, failed, summary)
        owner = read_owner(about.get("owner", b""))
        gone = owner is None or is_dead(owner) or until_s < seconds + micros / 1e6
        return replace(info, status="paused") if status == "running" and gone else info

    def check(self, run: str) -> Checked:
        with self._there() as client:
            about = self._about(client, run)
            found = check_redis(client, self._keys(run))
        found.lost = max(0, self._marked(run) - int(about.get("records", b"0")))
        return found

    def compact(self, run: str) -> Compacted:
        keys = self._keys(run)
        with self._there() as client:
            about = self._about(client, run)
            ended = about.get("status") == b"done"
            held = self._claim(client, run, about)
            seq = itertools.count(held.seq + 1)

            def commit(writes: Sequence[Argument]) -> None:
                answer = _run(client, COMMIT, keys, held.token, next(seq), _LEASE_MS, 0, *writes)
                if answer != [b"ok"]:
                    raise Superseded(f"run {run}")

            try:
                return compact_redis(client, keys, commit, ended)
            finally:
                _run(client, RELEASE, keys, held.token, 0)

    def entries(self, run: str) -> Iterator[Entry]:
        with self._there() as client:
            yield from entries_of_redis(client, self._keys(run))

    def results(self, bounds: Bounds) -> RedisResultStore:
        return RedisResultStore(self._address, bounds)

    def missing(self, run: str) -> InvalidInput:
        if (self._folder / "runs" / run / MARK).is_file():
            return InvalidInput(
                f"run {run} was in {self.shown}, which has lost it: it was restarted empty, or "
                "emptied; start the run anew"
            )
        return InvalidInput(f"there is no run {run} in {self.shown}")

    # ---- pieces -------------------------------------------------------------------------------

    @contextmanager
    def _there(self) -> Generator[Any]:
        """The client. Raises JournalError if Redis is away: nothing has begun, so nobody waits."""
        try:
            with answering(self._address):
                yield self._client
        except RedisAway as away:
            raise JournalError(
                f"Redis at {self.shown} does not answer: {away}; start it, or name another --home"
            ) from away

    @cached_property
    def _client(self) -> Any:
        return connect(self._address)

    @cached_property
    def _server(self) -> Server:
        """Looked at before a run is created or claimed."""
        from redis.exceptions import ResponseError

        client = self._client
        info = client.info()
        if "redis_version" not in info:  # of a cluster: what each node says
            info = next(iter(info.values()))
        try:
            fsync = client.config_get("appendfsync").get("appendfsync")
        except ResponseError:  # a managed Redis does not tell
            fsync = None
        return check_server(self._address, info, fsync)

    @property
    def _index(self) -> str:
        return f"{self._address.options.prefix}:runs"

    def _keys(self, run: str) -> Keys:
        return Keys(self._address.options.prefix, run)

    def _about(self, client: Any, run: str) -> dict[str, bytes]:
        found: Mapping[bytes, bytes] = client.hgetall(self._keys(run).about)
        if not found:
            raise self.missing(run)
        about = {name.decode(): value for name, value in found.items()}
        version = int(about.get("version", b"0"))
        if version > JOURNAL_VERSION:
            raise JournalError(
                f"{self.shown}: run {run} was written by a newer Tenter (journal version "
                f"{version}; this one reads up to {JOURNAL_VERSION}); upgrade Tenter"
            )
        return about

    def _manifest(self, run: str, about: Mapping[str, bytes]) -> Manifest:
        try:
            return msgspec.json.decode(about.get("manifest", b""), type=Manifest)
        except msgspec.MsgspecError as error:
            raise self._damaged(run, error) from error

    def _damaged(self, run: str, error: Exception) -> JournalError:
        return JournalError(f"{self.shown}: run {run} is damaged; start a new run ({error})")

    def _claim(self, client: Any, run: str, about: Mapping[str, bytes]) -> Held:
        """The lease of a run that nobody runs, or somebody who has certainly died."""
        owner = read_owner(about.get("owner", b""))
        dead = about["owner"] if owner is not None and is_dead(owner) else b"?"
        answer = _run(
            client,
            CLAIM,
            self._keys(run),
            secrets.token_hex(8),
            this_process().text(),
            _LEASE_MS,
            dead,
        )
        match answer:
            case [b"claimed", bytes(token), int(seq), int(records)]:
                lost = max(0, self._marked(run) - records)
                return Held(token.decode(), seq, records, lost)
            case [b"held", bytes(holder), int(left_ms)]:
                raise JournalError(
                    f"run {run} is running already, in {_named(holder)}; wait for it or stop it "
                    f"(unless it gives a sign of life, it can be taken over in {left_ms / 1000:.0f} s)"
                )
            case _:
                raise self.missing(run)

    def _finished(self, client: Any, keys: Keys) -> int:
        buckets = [int(number) for number in client.zrange(keys.row_buckets, 0, -1)]
        total = 0
        for at in range(0, len(buckets), _PIECE):
            pipe = client.pipeline(transaction=False)
            for bucket in buckets[at : at + _PIECE]:
                pipe.hlen(keys.rows(bucket))
            total += sum(pipe.execute())
        return total

    def _journal(
        self,
        manifest: Manifest,
        held: Held,
        server: Server,
        on_failure: Callable[[JournalError], None] | None,
    ) -> RedisJournal:
        path = self._folder / "runs" / manifest.run / MARK

        def mark(records: int) -> None:
            path.write_text(f"{records}\n")

        mark(held.records)
        return RedisJournal(
            self._address, manifest, held, server, on_failure=on_failure, on_mark=mark
        )

    def _marked(self, run: str) -> int:
        try:
            return int((self._folder / "runs" / run / MARK).read_text())
        except (OSError, ValueError):
            return 0

    def _make_folder(self, run: str) -> None:
        folder = self._folder / "runs" / run
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"run folder {folder}: {error.strerror or error}") from error


def _run(client: Any, script: Script, keys: Keys, *arguments: Argument) -> list[Any]:
    answer: list[Any] = client.execute_command("EVAL", script.text, 1, keys.about, *arguments)
    return answer


def _named(holder: bytes) -> str:
    owner: Owner | None = read_owner(holder)
    return str(owner) if owner is not None else "another process"
