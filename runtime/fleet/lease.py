"""What one process may use of one worker, by what it hears of the account, or does not hear."""

from .ledger import Answer, Ask
from .shares import LEAST, Amount, equal_split, fair

KEEP_S = 30.0  # for which a share holds where nobody answers


class Lease:
    """The share of one worker. It begins with nothing but the minimum of one who is alone."""

    def __init__(self, now_s: float) -> None:
        self.share: Amount | None = None  # None: nobody has ever answered
        self.token = ""
        self.split = False  # nobody has answered for long: an equal split is in force
        self._whole = Amount()  # the worker as others may see it
        self._others: tuple[Amount, ...] | None = None  # what they need
        self._heard_s = now_s

    @property
    def processes(self) -> int:
        """Those that share the worker, as far as is known."""
        return 1 + len(self._others or ())

    def ask(self, whole: Amount, need: Amount, used: Amount) -> Ask:
        """What to tell; the share that it wants is fair by what is known of the others."""
        if self._others is None:
            want = Amount(whole.tokens // LEAST, max(1, whole.slots // LEAST))
        else:
            needed = Amount(*map(min, zip(need, whole, strict=True)))
            fairly = fair(
                Amount(*map(max, zip(whole, self._whole, strict=True))), needed, self._others
            )
            want = Amount(*map(min, zip(fairly, whole, strict=True)))
        return Ask(self.token, whole, need, used, want, self.share or Amount())

    def told(self, answer: Answer, now_s: float) -> None:
        """The account has answered."""
        self.token, self.share = answer.token, answer.granted
        self._whole, self._others = answer.whole, answer.others
        self._heard_s, self.split = now_s, False

    def refused(self) -> None:
        """The token is none of the account's any more: this process was thought dead."""
        self.token = ""

    def away(self, whole: Amount, now_s: float) -> None:
        """Nobody answers: the last share holds for a while, then an equal split."""
        if self.share is None or now_s - self._heard_s >= KEEP_S:
            self.share, self.split = equal_split(whole, self.processes), True
