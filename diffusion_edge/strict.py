"""Files and records read strictly: an error says where it is, what is wrong, and what is right."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from diffusion_edge.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_NODES = 100_000
_Model = TypeVar("_Model", bound=BaseModel)


class Disagreement(ValueError):
    """Two parts of a file that do not agree; `loc` leads to the one at fault, from the record that
    raises it."""

    def __init__(self, loc: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.loc = tuple(loc)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# ---------------------------------------------------------------------------- files


def read_text(path: Path) -> str:
    """Raises ConfigError for what cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}", file=str(path)) from None


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """What a file says, and its nodes, which know their lines.

    Raises ConfigError for what is no YAML, for more of it than anybody writes, and for a key that
    stands twice.
    """
    text = read_text(path)
    if len(text) > MAX_CHARACTERS:
        message = f"{path}: has {len(text)} characters; {MAX_CHARACTERS} are the limit"
        raise ConfigError(message, file=str(path))
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_unfolding(document, path)
        data = yaml.safe_load(text)
    except RecursionError:
        message = f"{path}: not YAML: it is nested too deeply"
        raise ConfigError(message, file=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and numbers that are none
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML: {_problem(error)}", file=str(path)) from None
    _refuse_repeated_keys(document, path)
    return data, document


def _refuse_unfolding(document: yaml.Node | None, path: Path) -> None:
    """An alias may stand within what it names, or a few lines of aliases for billions."""
    waiting, seen = [document], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MAX_NODES:
            message = f"{path}: its aliases unfold to more than {MAX_NODES} values, or never end"
            raise ConfigError(message, file=str(path))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML keeps the last of two equal keys in silence; a second stage would vanish."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated_keys(child, path)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                message = f"{path}, line {line}: {key.value}: this key stands twice"
                raise ConfigError(message, file=str(path), key=str(key.value))
            seen.add(key.value)
            _refuse_repeated_keys(value, path)


# ---------------------------------------------------------------------------- records


def validate(model: type[_Model], data: object, file: str, document: yaml.Node | None) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        # An unknown key explains a missing one, so it goes first.
        errors = sorted(failure.errors(), key=lambda error: error["type"] != "extra_forbidden")
        first = errors[0]
        loc = [part for part in first["loc"] if part != "[key]"]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, Disagreement):
            loc += cause.loc
        key = dotted(loc)
        said = _explain(model, loc, first)
        line = line_of(document, loc)
        place = f"{file}, line {line}" if line else file
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        where = f"{place}: {key}" if key else place
        raise ConfigError(f"{where}: {said}{more}", file=file, key=key) from None


def _explain(model: type[BaseModel], loc: Sequence[str | int], error: Any) -> str:
    """What is wrong at `loc` and what would be right."""
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, loc[:-1])
        near = nearest(str(loc[-1]), fields)
        return f"unknown key{near or '; known are ' + ', '.join(sorted(fields))}"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    given = error["input"]
    if error["type"] in ("model_type", "dict_type"):
        known = ", ".join(sorted(_fields_at(model, loc)))
        return f"keys with values are to stand here{known and ': ' + known}; not {cut(given)}"
    if error["type"] == "literal_error" and isinstance(given, str):
        expected = error["ctx"]["expected"].replace(" or ", ",")
        allowed = [part.strip("' ") for part in expected.split(",")]
        return f"{given!r} is not one of {', '.join(allowed)}{nearest(given, allowed)}"
    hint = ""
    if error["type"] in ("float_type", "int_type") and isinstance(given, str):
        hint = number_hint(given)
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {cut(given)}{hint}"


def number_hint(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"; YAML reads this as text, write {number:.1f}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known; empty if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _fields_at(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that are known where `loc` points, found by following the annotations."""
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        elif typing.get_origin(model) in (list, dict):
            model = typing.get_args(model)[-1]
        while typing.get_origin(model) in (Union, types.UnionType, Annotated):
            model = typing.get_args(model)[0]
    known = isinstance(model, type) and issubclass(model, BaseModel)
    return list(model.model_fields) if known else []


def dotted(loc: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).lstrip(".")


def line_of(node: yaml.Node | None, loc: Sequence[str | int]) -> int | None:
    """Line of the deepest node on the way to `loc`, counted from 1."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _problem(error: Exception) -> str:
    """In one line, without the place."""
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    said = ": ".join(part for part in parts if part) or str(error)
    return " ".join(said.split())[:300]


def cut(value: object) -> str:
    """A value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]} …"
