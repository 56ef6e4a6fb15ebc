from collections.abc import Callable
from typing import Any
Pause: Any = dict
Hold = Callable[[Any], float | None]
