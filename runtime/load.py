"""Find the workflow that a reference names: `pipeline.yaml`, `file.py:name` or `module:name`."""

import difflib
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from .api import WorkflowHandle
from .errors import InvalidInput, InvalidWorkflow, Problem
from .workflow import Workflow

YAML_SUFFIXES = {".yaml", ".yml"}


def load_workflow(reference: str) -> Workflow:
    """The workflow that `reference` names.

    Without `:name` the file or module must hold exactly one. Raises InvalidInput for a reference
    that leads nowhere and InvalidWorkflow for a workflow that does not compile.
    """
    path, name = _split(reference)
    if Path(path).suffix in YAML_SUFFIXES:
        if name:
            raise InvalidInput(f"{reference}: a YAML file holds one workflow; write {path!r} alone")
        return _from_yaml(Path(path))
    module = _from_file(Path(path)) if path.endswith(".py") else _from_name(path)
    return _chosen(module, path, name)


def _split(reference: str) -> tuple[str, str]:
    path, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        return reference.removesuffix(":"), ""
    return path, name


def _from_yaml(path: Path) -> Workflow:
    from .spec import load

    _must_exist(path)
    return load(path)


def _must_exist(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; name a workflow file in it")
    folder = path.parent
    siblings = sorted(found.name for found in folder.iterdir()) if folder.is_dir() else []
    raise InvalidInput(f"there is no file {path}{_did_you_mean(path.name, siblings)}")


def _from_file(path: Path) -> ModuleType:
    """Run a Python file as `python file.py` would, its folder first on the path."""
    _must_exist(path)
    path = path.resolve()
    name = f"tenter_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} cannot be imported as Python")
    _prefer(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _import_problem(error, str(path)) from error
    return module


def _from_name(name: str) -> ModuleType:
    if Path(name).suffix and Path(name).is_file():
        raise InvalidInput(f"{name} is no workflow file; those end in .yaml, .yml or .py")
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidInput(
            f"{name!r} names no workflow: write pipeline.yaml, file.py:name or module:name"
        )
    _prefer(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidInput(
                f"there is no module {name!r}; for a file write {name.replace('.', '/')}.py:name"
            ) from error
        raise _import_problem(error, name) from error
    except BaseException as error:
        raise _import_problem(error, name) from error


def _prefer(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import_problem(error: BaseException, file: str) -> BaseException:
    """What to raise for a user's file that fails to import: with the line, not our traceback."""
    if isinstance(error, InvalidInput) or not isinstance(error, Exception):
        return error
    if isinstance(error, SyntaxError):
        place = Problem(
            f"{error.msg}", error.filename or file, error.lineno or 0, error.offset or 0
        )
        return InvalidWorkflow([place])
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return InvalidWorkflow([Problem(f"{type(error).__name__}: {error}", file, line)])


def _chosen(module: ModuleType, path: str, name: str) -> Workflow:
    if name:
        thing = getattr(module, name, None)
        if isinstance(thing, Workflow | WorkflowHandle):
            return _compiled(thing)
        if thing is not None:
            raise InvalidInput(
                f"{path}:{name} is no workflow; decorate the function with @workflow"
            )
        known = [key for key, _ in _workflows(module)]
        raise InvalidInput(f"{path} has no workflow {name!r}{_did_you_mean(name, known)}")
    found = list(_workflows(module))
    own = [(key, flow) for key, flow in found if _written_in(flow) == module.__name__] or found
    if len(own) == 1:
        return _compiled(own[0][1])
    if not own:
        raise InvalidInput(f"{path} holds no workflow; decorate a function with @workflow")
    offered = ", ".join(f"{path}:{key}" for key, _ in own)
    raise InvalidInput(f"{path} holds {len(own)} workflows; name one: {offered}")


def _compiled(thing: Workflow | WorkflowHandle) -> Workflow:
    return thing if isinstance(thing, Workflow) else thing.workflow


def _workflows(module: ModuleType) -> Iterator[tuple[str, Workflow | WorkflowHandle]]:
    """The workflows among a module's names, each once, under the first of its names."""
    seen: set[int] = set()
    for key, thing in vars(module).items():
        if isinstance(thing, Workflow | WorkflowHandle) and id(thing) not in seen:
            seen.add(id(thing))
            yield key, thing


def _written_in(thing: Workflow | WorkflowHandle) -> str:
    return getattr(getattr(thing, "__wrapped__", None), "__module__", "")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
