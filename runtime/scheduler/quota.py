"""The accounts of limits: calls that run and tokens per minute, by model and by tenant.

A token budget is a bucket that fills evenly and holds what a minute brings. A call takes out the
most that it may use, and what it did not use goes back when it ends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .events import CallReady
from .limits import Limit, Limits
from .state import CallState, need

MINUTE_S = 60.0
LEAST = 0.5  # of a token: less is lacking only by the rounding of times
MANY = 1_024  # accounts, before those that nobody uses are closed


class Bucket:
    """A budget of `per_minute` tokens. What was used in excess of what had been taken is owed."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self.tokens = float(per_minute)
        self.owed = 0.0
        self._at_s = now_s

    def wait_s(self, tokens: float, now_s: float) -> float:
        """How long until so many can be taken out; 0: now."""
        self._fill(now_s)
        lack = tokens - self.tokens + self.owed
        return lack * MINUTE_S / self.per_minute if lack >= LEAST else 0.0

    def take(self, tokens: float, now_s: float) -> None:
        """Take tokens out; the bucket has them."""
        self._fill(now_s)
        self.tokens -= tokens
        if self.tokens < 0:  # by a rounding error, or a call that no budget had been asked for
            self.owed, self.tokens = self.owed - self.tokens, 0.0

    def give(self, tokens: float, now_s: float) -> None:
        """What was not used comes back; where it is negative, more was used."""
        self._fill(now_s)
        if tokens < 0:
            self.take(-tokens, now_s)
            return
        paid = min(self.owed, tokens)
        self.owed -= paid
        self.tokens = min(float(self.per_minute), self.tokens + tokens - paid)

    def refilled(self, per_minute: int, now_s: float) -> "Bucket":
        """A bucket of another size, with what is in this one and what is owed."""
        self._fill(now_s)
        found = Bucket(per_minute, now_s)
        found.tokens, found.owed = min(found.tokens, self.tokens), self.owed
        return found

    def full(self, now_s: float) -> bool:
        """Whether it is as a new one."""
        self._fill(now_s)
        return not self.owed and self.tokens >= self.per_minute

    def _fill(self, now_s: float) -> None:
        if now_s > self._at_s:
            fresh = (now_s - self._at_s) * self.per_minute / MINUTE_S
            self._at_s = now_s
            self.give(fresh, now_s)


@dataclass(slots=True)
class _Account:
    limit: Limit
    bucket: Bucket | None
    running: int = 0
    before: int = 0  # of them, when limits were last changed
    held: bool = False  # its calls wait until it is looked at again


class Quota:
    """Who has how much left. `alarm(reason, at_s)` asks for `again(reason)` at that time.

    A reason names the account that holds calls back: `model NAME` or `tenant NAME`.
    """

    def __init__(self, limits: Limits, alarm: Callable[[str, float], None]) -> None:
        self._limits = limits
        self._alarm = alarm
        self._accounts: dict[str, _Account] = {}
        self._many = MANY
        self.any = bool(limits.models or limits.tenants)

    def follow(self, limits: Limits, running: Sequence[CallState], now_s: float) -> list[str]:
        """Go on with other limits; calls beyond them go on, and what a minute has had is known.

        Returns the accounts that held calls back: they hold none any more.
        """
        old, self._accounts = self._accounts, {}
        self._limits, self.any = limits, bool(limits.models or limits.tenants)
        for call in running:
            for reason, limit in self._bounds(call.ready.model, call.tenant):
                account = self._account(reason, limit, now_s)
                account.running += 1
                account.before = account.running
                if account.bucket is not None and not _counted(old, reason):
                    account.bucket.take(need(call.ready), now_s)
        for reason, before in old.items():
            limit = self._limit_of(reason)
            if before.bucket is not None and limit.tokens_per_minute is not None:
                account = self._account(reason, limit, now_s)
                account.bucket = before.bucket.refilled(limit.tokens_per_minute, now_s)
        return [reason for reason, account in old.items() if account.held]

    def refusal(self, call: CallReady, tenant: str) -> str | None:
        """Why a call can never run; None: it may."""
        for reason, limit in self._bounds(call.model, tenant):
            most = limit.tokens_per_minute
            if most is not None and need(call) > most:
                return (
                    f"it needs {call.prompt_tokens} prompt tokens plus {call.max_tokens} for the "
                    f"answer, more than the {most} tokens per minute of {_named(reason)}"
                )
        return None

    def could_take(self, calls: Sequence[CallState]) -> bool:
        """Whether all of `calls` could run at once, if nothing else did."""
        tokens = sum(need(call.ready) for call in calls)
        for _, limit in self._bounds(calls[0].ready.model, calls[0].tenant):
            if limit.max_running is not None and len(calls) > limit.max_running:
                return False
            if limit.tokens_per_minute is not None and tokens > limit.tokens_per_minute:
                return False
        return True

    def holds(self, reason: str) -> bool:
        """Whether its calls have to wait."""
        account = self._accounts.get(reason)
        return account is not None and account.held

    def holds_back(self, calls: Sequence[CallState], now_s: float) -> str | None:
        """The account that keeps `calls` from running together now, if one does; it is held then."""
        first = calls[0]
        for reason, limit in self._bounds(first.ready.model, first.tenant):
            account = self._account(reason, limit, now_s)
            if account.held:
                return reason
            most = limit.max_running
            if most is not None and account.running + len(calls) > most:
                account.held = True
                return reason
            if account.bucket is not None:
                wait_s = account.bucket.wait_s(sum(need(call.ready) for call in calls), now_s)
                if wait_s > 0:
                    account.held = True
                    self._alarm(reason, now_s + wait_s)
                    return reason
        return None

    def again(self, reason: str) -> None:
        """The account holds nothing back until it is asked the next time."""
        account = self._accounts.get(reason)
        if account is not None:
            account.held = False

    def take(self, call: CallState, now_s: float) -> None:
        """A call is dispatched."""
        for reason, limit in self._bounds(call.ready.model, call.tenant):
            account = self._account(reason, limit, now_s)
            account.running += 1
            if account.bucket is not None:
                account.bucket.take(need(call.ready), now_s)

    def give(self, call: CallState, used_tokens: int, now_s: float) -> list[str]:
        """A dispatched call is over; the accounts that may hold calls back no more."""
        freed: list[str] = []
        for reason, limit in self._bounds(call.ready.model, call.tenant):
            account = self._account(reason, limit, now_s)
            account.running -= 1
            if account.bucket is not None:
                account.bucket.give(need(call.ready) - used_tokens, now_s)
            if account.held:
                account.held = False
                freed.append(reason)
        return freed

    def _limit_of(self, reason: str) -> Limit:
        kind, _, name = reason.partition(" ")
        return self._limits.of_model(name) if kind == "model" else self._limits.of_tenant(name)

    def _bounds(self, model: str, tenant: str) -> list[tuple[str, Limit]]:
        found = [
            (f"model {model}", self._limits.of_model(model)),
            (f"tenant {tenant}", self._limits.of_tenant(tenant)),
        ]
        return [one for one in found if one[1].max_running or one[1].tokens_per_minute]

    def _account(self, reason: str, limit: Limit, now_s: float) -> _Account:
        account = self._accounts.get(reason)
        if account is None:
            most = limit.tokens_per_minute
            account = _Account(limit, None if most is None else Bucket(most, now_s))
            self._accounts[reason] = account
            if len(self._accounts) > self._many:
                self._close_idle(reason, now_s)
        return account

    def _close_idle(self, new: str, now_s: float) -> None:
        for reason, account in list(self._accounts.items()):
            used = account.running or account.held
            if reason != new and not used and (not account.bucket or account.bucket.full(now_s)):
                del self._accounts[reason]
        self._many = max(MANY, 2 * len(self._accounts))

    def check(self, calls: dict[str, CallState]) -> None:
        """Raise AssertionError where the accounts contradict what runs."""
        running: dict[str, int] = {}
        for call in calls.values():
            if call.worker is not None:
                for reason, _ in self._bounds(call.ready.model, call.tenant):
                    running[reason] = running.get(reason, 0) + 1
        for reason, account in self._accounts.items():
            assert account.running == running.get(reason, 0), reason
            most = account.limit.max_running
            assert most is None or account.running <= max(most, account.before), reason
            if account.bucket is not None:
                assert 0 <= account.bucket.tokens <= account.bucket.per_minute, reason
                assert account.bucket.owed >= 0, reason


def _counted(accounts: Mapping[str, _Account], reason: str) -> bool:
    """Whether the account has taken the tokens of calls that run."""
    return reason in accounts and accounts[reason].bucket is not None


def _named(reason: str) -> str:
    kind, _, name = reason.partition(" ")
    return f"{kind} {name!r}"
