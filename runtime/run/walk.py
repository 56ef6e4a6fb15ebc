"""One graph being run for one input: a step starts when its own inputs are there.

No task per step and no barrier: a finished step counts down those that wait for it. What becomes
ready goes to a work list, so that long chains do not recurse.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...planner.graph import LLM, Repeat, ToolCall
from ...planner.values import spell
from ...tools import Tool
from ..errors import StepFailed, TenterError
from ..scheduler.events import Repeated
from .host import Host
from .machine import Body
from .owner import Owner
from .trust import Toolbox

Ended = Callable[[Any, Exception | None], None]


OPEN_ITEMS = 1024  # of one `each`: later items are opened as earlier ones end


class _Frame:
    """A body being run: the names it sees, and how many inputs each node still waits for.

    `place` is its index among the items or iterations of `loop`; the outermost frame has no `loop`.
    """

    __slots__ = ("body", "left", "loop", "place", "prefix", "values", "waits")

    def __init__(
        self,
        body: Body,
        values: dict[str, Any],
        prefix: str,
        loop: "_EachRun | _RepeatRun | None" = None,
        place: int = 0,
    ) -> None:
        self.body = body
        self.values = values
        self.prefix = prefix
        self.loop = loop
        self.place = place
        self.waits = list(body.waits)
        self.left = len(body.nodes)


class _EachRun:
    """An `each` being run: its items, those that have ended, and the next one to open."""

    __slots__ = ("frame", "index", "items", "left", "next", "results")

    def __init__(self, frame: _Frame, index: int, items: list[Any]) -> None:
        self.frame = frame
        self.index = index
        self.items = items
        self.left = len(items)
        self.next = 0
        self.results: list[Any] = [None] * len(items)


class _RepeatRun:
    """A `repeat` being run, an iteration at a time."""

    __slots__ = ("frame", "index")

    def __init__(self, frame: _Frame, index: int) -> None:
        self.frame = frame
        self.index = index


class _Wait:
    """Takes one step's result, and goes on."""

    __slots__ = ("frame", "index", "walk")

    def __init__(self, walk: "Walk", frame: _Frame, index: int) -> None:
        self.walk = walk
        self.frame = frame
        self.index = index

    def __call__(self, value: Any, error: Exception | None) -> None:
        self.walk.take(self.frame, self.index, value, error)


class Walk:
    """Runs `body` on `inputs` and calls `ended(value, error)` once.

    `prefix` begins the paths of its steps, so that several graphs of one program keep apart.
    """

    def __init__(
        self,
        host: Host,
        owner: Owner,
        body: Body,
        tools: Mapping[str, Tool],
        ended: Ended,
        prefix: str = "",
    ) -> None:
        self._host = host
        self._owner = owner
        self._body = body
        self._tools = tools
        self._toolbox = Toolbox(tools)
        self._ended: Ended | None = ended
        self._prefix = prefix
        self._ready: deque[tuple[_Frame, int]] = deque()
        self._busy = False

    def start(self, inputs: Mapping[str, Any]) -> None:
        """Begin; may end before this returns, when nothing has to be waited for."""
        self._open(_Frame(self._body, dict(inputs), self._prefix))
        self._work()

    def take(self, frame: _Frame, index: int, value: Any, error: Exception | None) -> None:
        """A step that had to be waited for has ended."""
        if self._ended is None or self._owner.ended:
            return
        if error is not None:
            self._end(None, error)
            return
        self._settle(frame, index, value)
        self._work()

    def _open(self, frame: _Frame) -> None:
        if not frame.left:
            self._close(frame)
        for index in frame.body.first:
            self._ready.append((frame, index))

    def _work(self) -> None:
        """Start what is ready, until nothing is."""
        if self._busy:
            return
        self._busy = True
        ready = self._ready
        try:
            while ready and self._ended is not None:
                frame, index = ready.popleft()
                try:
                    self._start(frame, index)
                except Exception as error:
                    self._end(None, _place(error, frame.body.nodes[index].id))
        finally:
            self._busy = False

    def _start(self, frame: _Frame, index: int) -> None:
        node = frame.body.nodes[index]
        if node.guard is not None and not node.guard(frame.values):
            self._settle(frame, index, None)
            return
        step = node.step
        if isinstance(step, LLM):
            asking = self._host.asking(step)
            values = asking.arguments(frame.values)
            path = frame.prefix + node.id
            wait = _Wait(self, frame, index)
            self._host.answer(self._owner, path, asking, values, wait, self._toolbox)
            return
        assert node.value is not None
        value = node.value(frame.values)
        if isinstance(step, ToolCall):
            tool, path = self._tools[step.tool], frame.prefix + node.id
            wait = _Wait(self, frame, index)
            self._host.tools.use(self._owner, path, node.id, tool, value, wait)
        elif isinstance(step, Repeat):
            self._iterate(_RepeatRun(frame, index), value, 0)
        elif node.body is not None:
            self._start_each(frame, index, value)
        else:
            self._settle(frame, index, value)

    def _start_each(self, frame: _Frame, index: int, items: Any) -> None:
        if not isinstance(items, list):
            kind = type(items).__name__
            name = frame.body.nodes[index].id
            raise StepFailed(f"`each` needs a list, and got {kind}: {items!r:.100}", name)
        each = _EachRun(frame, index, cast("list[Any]", items))
        body = frame.body.nodes[index].body
        if body is not None and not body.nodes:
            name = frame.body.nodes[index].item
            results = [body.result({**frame.values, name: item}) for item in each.items]
            self._settle(frame, index, results)
            return
        if not each.left:
            self._settle(frame, index, [])
        for _ in range(min(each.left, OPEN_ITEMS)):
            self._open_item(each)

    def _open_item(self, each: _EachRun) -> None:
        place = each.next
        each.next += 1
        self._open(_inside(each, each.items[place], place))

    def _iterate(self, loop: _RepeatRun, value: Any, place: int) -> None:
        """Run the body on `value`; one that waits for nothing runs on and on in here."""
        frame = _inside(loop, value, place)
        while not frame.left:
            value = frame.body.result(frame.values)
            if self._is_last(frame, loop):
                self._leave(loop, frame, value)
                return
            frame = _inside(loop, value, frame.place + 1)
        self._open(frame)

    def _leave(self, loop: _RepeatRun, frame: _Frame, value: Any) -> None:
        """A `repeat` ends with this iteration."""
        program, count = self._owner.name, frame.place + 1
        self._host.note(Repeated(program=program, step=_id(loop), iterations=count))
        self._settle(loop.frame, loop.index, value)

    def _is_last(self, frame: _Frame, loop: _RepeatRun) -> bool:
        """Whether a `repeat` ends with this iteration; raises StepFailed where it may not."""
        node = loop.frame.body.nodes[loop.index]
        step = node.step
        assert isinstance(step, Repeat) and node.until is not None
        if node.until(frame.values):
            return True
        if frame.place + 1 < step.max_iterations:
            return False
        if step.on_limit == "last":
            return True
        raise StepFailed(
            f"after {step.max_iterations} iterations `{spell(step.until)}` does not hold: raise "
            "max_iterations, or take what the last one gave with on_limit: last",
            node.id,
        )

    def _settle(self, frame: _Frame, index: int, value: Any) -> None:
        node = frame.body.nodes[index]
        frame.values[node.id] = value
        waits = frame.waits
        for reader in node.readers:
            waits[reader] -= 1
            if waits[reader] == 0:
                self._ready.append((frame, reader))
        frame.left -= 1
        if frame.left == 0:
            self._close(frame)

    def _close(self, frame: _Frame) -> None:
        """All steps of a body have ended: its result goes to the loop around it, or is the end."""
        each, last = frame.loop, True
        try:
            value = frame.body.result(frame.values)
            if isinstance(each, _RepeatRun):
                last = self._is_last(frame, each)
        except Exception as error:
            self._end(None, _place(error, "result" if each is None else _id(each)))
            return
        if each is None:
            self._end(value, None)
            return
        if isinstance(each, _RepeatRun):
            if last:
                self._leave(each, frame, value)
            else:
                self._iterate(each, value, frame.place + 1)
            return
        each.results[frame.place] = value
        each.left -= 1
        if each.next < len(each.items):
            self._open_item(each)
        elif each.left == 0:
            self._settle(each.frame, each.index, each.results)

    def _end(self, value: Any, error: Exception | None) -> None:
        ended, self._ended = self._ended, None
        if error is not None:
            self._ready.clear()
        if ended is not None:
            ended(value, error)


def _id(loop: _EachRun | _RepeatRun) -> str:
    return loop.frame.body.nodes[loop.index].id


def _inside(loop: _EachRun | _RepeatRun, value: Any, place: int) -> _Frame:
    """The body of a loop about to be run on a value."""
    outer = loop.frame
    node = outer.body.nodes[loop.index]
    assert node.body is not None
    values = {**outer.values, node.item: value}
    return _Frame(node.body, values, f"{outer.prefix}{node.id}[{place}].", loop, place)


def _place(error: Exception, step: str) -> Exception:
    """An error that tells its step."""
    return error if isinstance(error, TenterError) else StepFailed(str(error), step)
