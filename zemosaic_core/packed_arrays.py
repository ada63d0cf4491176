"""Small arrays of records that stay, put into one piece of memory.

The system gets memory back page by page. A few hundred bytes that stay keep a page of 4 kB when what lay around them
was given back, and tables that were only needed meanwhile leave many such pages. Packed, what stays takes what it
holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np

__all__ = ["packed"]

T = TypeVar("T")

# Larger arrays have pages of their own.
MOST_BYTES = 16_384
_ALIGNMENT = 16


def packed(record: T) -> T:
    """Return a record whose small arrays lie in one piece of memory; it is equal to what was given.

    Parameters
    ----------
    record : object
        Dataclasses, tuples, lists and dictionaries are looked into, whatever else there is stays as it is. Arrays that
        several of them share stay shared.

    Notes
    -----
    What was given is left as it is; memory is won when nothing refers to it any more.
    """
    found: dict[int, np.ndarray] = {}
    _collect(record, found, set())
    if not found:
        return record
    starts, end = [], 0
    for array in found.values():
        starts.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(end, np.uint8)
    made: dict[int, Any] = {}
    for (key, array), start in zip(found.items(), starts, strict=True):
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copy.setflags(write=array.flags.writeable)
        made[key] = copy
    return cast(T, _rebuilt(record, made))


def _is_small(value: Any) -> bool:
    return type(value) is np.ndarray and 0 < value.nbytes <= MOST_BYTES and not value.dtype.hasobject


def _parts(value: Any) -> list[Any]:
    if type(value) in (tuple, list):
        return list(value)
    if type(value) is dict:
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, item.name) for item in fields(value)]
    return []


def _collect(value: Any, found: dict[int, np.ndarray], seen: set[int]) -> None:
    if id(value) in seen:
        return
    if _is_small(value):
        seen.add(id(value))
        found[id(value)] = value
        return
    parts = _parts(value)
    if parts:
        seen.add(id(value))
    for part in parts:
        _collect(part, found, seen)


def _rebuilt(value: Any, made: dict[int, Any]) -> Any:
    """Return a value with its arrays in their new place; itself when it has none. ``made`` is by identity."""
    if id(value) in made:
        return made[id(value)]
    parts = _parts(value)
    if not parts:
        return value
    again = [_rebuilt(part, made) for part in parts]
    if all(new is old for new, old in zip(again, parts, strict=True)):
        result = value
    elif type(value) in (tuple, list):
        result = type(value)(again)
    elif type(value) is dict:
        result = dict(zip(cast(Mapping[Any, Any], value), again, strict=True))
    else:
        result = _copy_of(value, again)
    made[id(value)] = result
    return result


def _copy_of(value: Any, parts: list[Any]) -> Any:
    """Return a dataclass with other values of its fields; what it worked out for itself is worked out anew."""
    result = object.__new__(type(value))
    for item, part in zip(fields(value), parts, strict=True):
        object.__setattr__(result, item.name, part)
    return result
