"""Configurations in YAML: read strictly, with parents and ``key=value`` overrides, and written out whole.

A file may name a parent (``parent: vox-256.yaml``, relative to itself) and override parts of it. Every key is known,
every value has the declared type, every error names the full key. The resolved configuration is written into every run
and every checkpoint, so that nothing else has to be named later.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from mrfomm.config.schema import Config, check_config, shown
from mrfomm.errors import AnyPath, UserError, check_is_file

MOST_BYTES = 1 << 16  # of a configuration, which has some thousand; reading takes a second for so many
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, OverflowError)  # for nested, impossible and endless values
_NAMES = {bool: "true or false", int: "a whole number", str: "a string"}
_Section = TypeVar("_Section")


def load_config(path: AnyPath, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file; overrides are ``key=value`` with a dotted key (``train.batch_size``) and a value in YAML.

    Raises:
        UserError: unreadable file, unknown key, wrong type or a value that can't work, with the full key.
    """
    values = _read_with_parents(Path(path), seen=())
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values, str(path))


def config_from_dict(values: dict[str, Any], source: AnyPath) -> Config:
    """Build a checked Config from nested dictionaries; ``source`` names them in errors."""
    config = _build(Config, values, source, ())
    check_config(config, source)
    return config


def config_to_yaml(config: Config) -> str:
    """The configuration as YAML text that ``load_config`` reads back to an equal object."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # lists for tuples
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=110)


def read_yaml(path: AnyPath) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; UserError names the file when it can't be."""
    check_is_file(path)
    if Path(path).stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: larger than a configuration can be; give a YAML file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: can't read the configuration ({error}); give a YAML file") from error
    except _NO_YAML as error:
        raise UserError(f"{path}: not valid YAML ({error}); mend the file") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a mapping of keys to values")
    return values or {}


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    values, seen = read_yaml(path), (*seen, path.resolve())
    parent = values.pop("parent", None)
    if parent is None:
        return values
    parent_path = path.parent / str(parent)
    check_is_file(parent_path)
    if parent_path.resolve() in seen:
        raise UserError(f"{path}: parent {parent} leads back to itself; break the circle")
    return _merged(_read_with_parents(parent_path, seen), values)


def _merged(base: object, changes: object) -> Any:
    """``base`` with nested changes."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key=value, for example train.batch_size=8")
    try:
        value = yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"--set {key}: {shown(text)} is not valid YAML; quote it") from error
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
    values[name] = value


def _build(cls: type[_Section], values: object, source: AnyPath, path: tuple[str, ...]) -> _Section:
    if not isinstance(values, dict):
        raise UserError(f"{source}: {'.'.join(path) or 'the file'} must be a section with keys, not {shown(values)}")
    kinds = {item.name: item.type for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in kinds:
            full = ".".join((*path, key if isinstance(key, str) else shown(key)))
            raise UserError(f"{source}: unknown key {full}; known here: {', '.join(kinds)}")
    return cls(**{key: _value(kinds[key], value, source, (*path, key)) for key, value in values.items()})


def _value(kind: Any, value: object, source: AnyPath, path: tuple[str, ...]) -> object:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, source, path)
    try:
        return _converted(kind, value)
    except TypeError as error:
        raise UserError(f"{source}: {'.'.join(path)} must be {error}, not {shown(value)}") from error


def _converted(kind: Any, value: object) -> object:
    """The value as a bool, int, float, str or tuple; a TypeError tells what it should have been."""
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        return tuple(_converted(get_args(kind)[0], entry) for entry in value)
    if kind is float:
        return _number(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(_NAMES[kind])
    return value


def _number(value: object) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as a string
        try:
            value = float(value)
        except ValueError:
            raise TypeError("a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise TypeError("a finite number")
    return float(value)
