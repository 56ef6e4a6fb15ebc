"""Backends by name: what `models:` in a workflow and `--model` on the command line refer to."""

import difflib
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from ..errors import InvalidConfig
from ..workflow import ModelSpec
from .base import Backend

Factory = Callable[..., Backend | AbstractAsyncContextManager[Sequence[Backend]]]


def _embedded(path: str = "tiny", **options: Any) -> Backend:
    from ..models import tiny_path
    from .embedded import EmbeddedBackend

    return EmbeddedBackend(tiny_path() if path == "tiny" else path, **options)


def _simulated(**options: Any) -> Backend:
    from .sim import SimulatedBackend

    return SimulatedBackend(**options)


def _fake(latency_s: float = 0.0, max_running: int = 64, reply: str = "ok") -> Backend:
    from .fake import FakeBackend

    made = FakeBackend(lambda prompt: reply, latency_s=latency_s, max_running=max_running)
    made.capabilities = replace(made.capabilities, model_fingerprint=f"fake/{reply}")
    return made


def _openai(url: str, **options: Any) -> Backend:
    from .openai import OpenAIBackend

    _check_url(url)
    return OpenAIBackend(url, **options)


def _sglang(url: str | list[str], **options: Any) -> AbstractAsyncContextManager[Sequence[Backend]]:
    from .sglang import connect

    urls = [url] if isinstance(url, str) else url
    for each in urls:
        _check_url(each)
    return connect(urls, **options)


def _check_url(url: object) -> None:
    """A run's settings are written down, so they must hold no secret."""
    if not isinstance(url, str):
        raise InvalidConfig(f"url must be text, such as http://127.0.0.1:30000; not {url!r}")
    if "@" in url.partition("//")[2].partition("/")[0]:
        raise InvalidConfig(
            "a url must not hold credentials, since runs remember their settings; put the key in "
            "an environment variable and name it: api_key=MY_KEY"
        )


BACKENDS: dict[str, Factory] = {
    "embedded": _embedded,
    "sglang": _sglang,
    "openai": _openai,
    "sim": _simulated,
    "fake": _fake,
}


@asynccontextmanager
async def open_replicas(spec: ModelSpec) -> AsyncGenerator[Sequence[Backend]]:
    """The replicas that serve `spec`, ready for use; at least one.

    Raises InvalidConfig that tells which setting does not fit, and BackendUnavailable where
    nobody answers.
    """
    found = _make(spec)
    async with found as entered:
        yield entered if isinstance(entered, Sequence) else (entered,)


def _make(spec: ModelSpec) -> Backend | AbstractAsyncContextManager[Sequence[Backend]]:
    factory = BACKENDS.get(spec.backend)
    if factory is None:
        raise InvalidConfig(
            f"model {spec.name!r}: there is no backend {spec.backend!r}"
            f"{_hint(spec.backend, list(BACKENDS))}; there is {', '.join(sorted(BACKENDS))}"
        )
    try:
        return factory(**spec.options)
    except TypeError as error:
        known = _options(factory)
        wrong = [name for name in spec.options if name not in known]
        if not wrong or not known:
            raise InvalidConfig(f"model {spec.name!r}: {error}") from error
        raise InvalidConfig(
            f"model {spec.name!r}: backend {spec.backend!r} has no option {wrong[0]!r}"
            f"{_hint(wrong[0], known)}; it has {', '.join(known)}"
        ) from error


def _options(factory: Factory) -> list[str]:
    """The options of a backend, read from the factory and from the class that it makes."""
    names = list(inspect.signature(factory).parameters)
    if factory is _embedded:
        from .embedded import EmbeddedBackend

        names = ["path", *list(inspect.signature(EmbeddedBackend).parameters)[1:]]
    elif factory is _openai:
        from .openai import OpenAIBackend

        names = list(inspect.signature(OpenAIBackend).parameters)
    elif factory is _sglang:
        from .sglang import connect

        names = ["url", *list(inspect.signature(connect).parameters)[1:]]
    elif factory is _simulated:
        from .sim import SimulatedBackend

        names = list(inspect.signature(SimulatedBackend).parameters)
    return names


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_model(name: str, text: str) -> ModelSpec:
    """A model from the command line: `embedded`, or `embedded:path=DIR,dtype=bfloat16`.

    Values that read as JSON are numbers, booleans or null; others are text. A name that is given
    several times has a list of values, as in `sglang:url=http://a:30000,url=http://b:30000`.
    """
    import json

    backend, _, rest = text.partition(":")
    given: dict[str, list[Any]] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise InvalidConfig(
                f"model {name!r}: {part!r} is not an option; write {backend}:name=value,name=value"
            )
        setting: Any = value
        with suppress(ValueError):
            setting = json.loads(value)
        given.setdefault(key.strip(), []).append(setting)
    options = {key: found[0] if len(found) == 1 else found for key, found in given.items()}
    return ModelSpec(name, backend, options)
