"""Reads frozen dataclasses from YAML strictly: unknown keys and wrong types are errors that name the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audio_llm.errors import ConfigError

T = TypeVar("T")

_FORMER = "former key"  # in the metadata of a field


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a dataclass from a YAML file.

    Args:
        cls: A dataclass; its fields may be bool, int, float, str, Path, Literal, Optional, tuples, dictionaries
            with string keys, and other dataclasses.
        path: The YAML file; None: the defaults of `cls`.
        overrides: `key=value` strings that take precedence over the file. `model.layers=8` sets a field of a nested
            dataclass; the value is parsed as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown or missing, or a value has the wrong type.
    """
    values: Any = {} if path is None else _read_yaml(Path(path))
    if not isinstance(values, dict):
        raise ConfigError("not a mapping of keys to values", path=path, remedy="write lines of the form `key: value`")
    for override in overrides:
        _override(values, override)
    return config_from_dict(cls, values, path)


def config_from_dict(cls: type[T], values: Mapping[str, Any], path: str | Path | None = None) -> T:
    """Build a dataclass from plain values, as `load_config` does.

    Args:
        cls: The dataclass.
        values: Plain YAML or JSON values by key.
        path: File of the values, for error messages.

    Raises:
        ConfigError: As for `load_config`.
    """
    built: T = _build(cls, _with_current_keys(cls, values, path), "", path)
    return built


def renamed(former: str, default: Any = None, default_factory: Callable[[], Any] | None = None) -> Any:
    """Return a dataclass field whose value is also read from its former key, so that stored configurations load."""
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata={_FORMER: former})
    return dataclasses.field(default=default, metadata={_FORMER: former})


def with_former_keys(config: Any) -> dict[str, Any]:
    """Return a dataclass as `dataclasses.asdict` does, under former keys (see `renamed`), for stored hashes."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = field.metadata.get(_FORMER, field.name)
        values[key] = with_former_keys(value) if dataclasses.is_dataclass(value) else value
    return values


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON values, which `config_from_dict` reads back."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", path=path, remedy="check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=path) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", path=path) from None
    return {} if values is None else values


def _override(values: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: not valid YAML: {error}") from None
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a single value without nested keys")
        values = child
    values[last] = value


def _with_current_keys(cls: Any, values: Any, path: str | Path | None) -> Any:
    """Return the values with every former key (see `renamed`) replaced by the current one, also in nested mappings."""
    if not isinstance(values, Mapping):
        return values
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    former = {field.metadata[_FORMER]: name for name, field in fields.items() if _FORMER in field.metadata}
    current = {}
    for key, value in values.items():
        name = str(former.get(key, key))
        if name != key and name in values:
            raise ConfigError(f"'{key}' is the former name of '{name}'", path=path, remedy="give one of the two")
        kind = hints.get(name)
        kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        current[name] = _with_current_keys(nested[0], value, path) if nested else value
    return current


def _build(cls: Any, values: Any, prefix: str, path: str | Path | None) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')!r} must be a mapping of keys to values", path=path)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise ConfigError(
                f"unknown key '{prefix}{key}'", path=path, remedy=_nearest(str(key), list(fields), prefix)
            )
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in values:
            raise ConfigError(f"key '{prefix}{name}' is missing", path=path, remedy="add it")
    kwargs = {
        key: _convert(hints[key], _over_default(fields[key], value), f"{prefix}{key}", path)
        for key, value in values.items()
    }
    try:
        return cls(**kwargs)
    except ValueError as error:
        raise ConfigError(str(error), path=path) from None


def _over_default(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a nested mapping merged into the default of its field, so that the keys it omits keep their defaults."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if not isinstance(value, Mapping) or not dataclasses.is_dataclass(default) or isinstance(default, type):
        return value
    return _merged(config_to_dict(default), value)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], over[key])
        for key in base.keys() & over.keys()
        if isinstance(base[key], dict) and isinstance(over[key], Mapping)
    }
    return {**base, **over, **both}


def _nearest(key: str, names: list[str], prefix: str) -> str:
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    return f"did you mean '{prefix}{close[0]}'?" if close else f"known keys: {', '.join(names)}"


def _convert(kind: Any, value: Any, key: str, path: str | Path | None) -> Any:
    """Return `value` converted to `kind`, or raise a ConfigError that names the key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, key, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"'{key}' is {value!r}", path=path, remedy=f"use one of {', '.join(map(str, arguments))}")
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, typing.cast(type, kind)) else _build(kind, value, f"{key}.", path)
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, key, path)
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(arguments[1], entry, f"{key}.{name}", path) for name, entry in value.items()}
    if kind is float and (number := _as_float(value)) is not None:
        return number
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"'{key}' is {value!r}", path=path, remedy=f"give a value of type {expected}")


def _convert_union(kinds: tuple[Any, ...], value: Any, key: str, path: str | Path | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    *earlier, last = [kind for kind in kinds if kind is not type(None)]
    for kind in earlier:
        try:
            return _convert(kind, value, key, path)
        except ConfigError:
            continue
    return _convert(last, value, key, path)


def _convert_sequence(origin: Any, kinds: tuple[Any, ...], value: Any, key: str, path: str | Path | None) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"'{key}' is {value!r}", path=path, remedy="give a list")
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise ConfigError(f"'{key}' has {len(value)} values", path=path, remedy=f"give {len(kinds)}")
    else:
        kinds = (kinds[0],) * len(value)
    return origin(_convert(k, v, f"{key}[{i}]", path) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _as_float(value: Any) -> float | None:
    """Return a number, also from a string, because YAML 1.1 reads `1e-3` as a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
