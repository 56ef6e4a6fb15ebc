"""The models that a server of OpenAI's dialect lists: ours among them, and its return."""

import logging
import random
from typing import Any

import anyio
import msgspec

from ..errors import BackendUnavailable, CallFailed, InvalidConfig, TenterError, TryAgain
from .http import Client

LOOK_S = 10.0  # for a question about the server itself
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 15.0
log = logging.getLogger(__name__)
Models = dict[str, int | None]  # names, each with the length of its context if the server tells


class ModelList:
    """What the server of `client` has at `path`; `model` is ours, None for the only one."""

    def __init__(self, client: Client, path: str, model: str | None) -> None:
        self._client = client
        self._path = path
        self._where = client.url + path
        self._model = model
        self._missing = False  # the server answers, and never had a list

    async def find(self) -> tuple[str, int | None]:
        """Our model's name, and how long its context is if the server tells.

        Raises InvalidConfig for what the user has to mend, and otherwise as `Client` does.
        """
        try:
            self._model, length = self._choose(await self.ask())
        except CallFailed as error:
            if self._model is None or isinstance(error, TryAgain):
                raise
            self._missing = True
            return self._model, None
        return self._model, length

    async def ask(self) -> Models:
        """All that it lists; raises as `Client` does, and TryAgain for what is no list.

        Empty for a server without a list, as long as it answers.
        """
        try:
            return _models(await self._client.get(self._path, LOOK_S), self._where)
        except CallFailed as error:
            if self._missing and not isinstance(error, TryAgain):
                return {}
            raise

    async def recovered(self, jitter: random.Random) -> None:
        """Ask again and again until the server lists our model.

        Waits 0.5 s at first and at most 15 s, less up to half of it at random, or as long as the
        server asks. While a server starts, or a proxy in front of it speaks in its place, answers
        may be odd, lists empty and keys refused: that is logged and waited out. Raises
        BackendUnavailable only if it lists other models.
        """
        wait_s, told = BACKOFF_S, ""
        while True:
            after_s = 0.0
            try:
                models = await self.ask()
                if models or self._missing:
                    break
            except TenterError as error:
                after_s = (error.after_s or 0.0) if isinstance(error, TryAgain) else 0.0
                if str(error) != told:
                    told = str(error)
                    log.warning("not back yet: %s", told)
            await anyio.sleep(max(after_s, wait_s * jitter.uniform(0.5, 1.0)))
            wait_s = min(wait_s * 2, LONGEST_BACKOFF_S)
        try:
            self._choose(models)
        except InvalidConfig as error:
            raise BackendUnavailable(str(error)) from None

    def _choose(self, models: Models) -> tuple[str, int | None]:
        known = ", ".join(sorted(models)) or "none"
        if self._model is None and len(models) != 1:
            raise InvalidConfig(
                f"{self._where}: the server has these models: {known}; set model to one"
            )
        name = self._model or next(iter(models))
        if name not in models and not self._missing:
            raise InvalidConfig(f"{self._where}: the server has no model {name!r}; it has {known}")
        return name, models.get(name)


class _Card(msgspec.Struct):
    id: str
    max_model_len: Any = None


class _Cards(msgspec.Struct):
    data: list[_Card]


def _models(answer: object, where: str) -> Models:
    try:
        cards = msgspec.convert(answer, _Cards).data
    except msgspec.ValidationError as error:
        raise TryAgain(f"{where}: the answer is no list of models: {error}") from None
    return {card.id: _length(card.max_model_len) for card in cards}


def _length(value: object) -> int | None:
    return value if isinstance(value, int) and value > 1 else None
