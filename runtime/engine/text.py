"""Text of the tokens as they come: never half a character, never a part of a stop string."""

from ..tokenizer import Detokenizer


class TextStream:
    """Turns tokens into text that may be handed out, and finds stop strings on the way.

    What could still become a stop string is held back. Once a stop string is found, `stopped` is
    set and the text ends right before it.
    """

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._detokenizer = detokenizer
        self._stop = tuple(text for text in stop if text)
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` sets free."""
        piece = self._detokenizer.push(token)
        if not self._stop or self.stopped or not piece:
            return "" if self.stopped else piece
        self._held += piece
        places = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if places:
            self.stopped = True
            return self._release(min(places), keep=False)
        return self._release(len(self._held) - self._open(), keep=True)

    def finish(self) -> str:
        """What was held back in vain. An unfinished character is dropped."""
        return "" if self.stopped else self._release(len(self._held), keep=False)

    def _open(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        for size in range(longest, 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0

    def _release(self, count: int, *, keep: bool) -> str:
        text, self._held = self._held[:count], self._held[count:] if keep else ""
        return text
