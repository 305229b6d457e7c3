"""Parts of an embedding by their names: which sensors share the dimensions of a part.

A part is "common", which all sensors share; "unique", which none share; or a block such as
"optical+sar", which the sensors that it names share. Where there are blocks, a sensor's name holds
no "+".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

from decur.errors import ConfigError

COMMON, UNIQUE = "common", "unique"
PREFIX = "block:"  # stands before a block beside words such as "features"
_KEY = "objective.blocks"
FORM = "{optical+sar: 0.5}"  # of the shares of blocks
_ROUNDING = 1e-9  # rounding of a sum of shares that a person gives in decimals


def sensors_of(part: str) -> frozenset[str]:
    """Return the sensors that a block names; none for "common" and "unique"."""
    return frozenset(part.split("+")) if "+" in part else frozenset()


def is_shared(part: str, *sensors: str) -> bool:
    """Return whether these sensors are to agree in the dimensions of a part.

    Args:
        part: its name.
        sensors: two or more.
    """
    return part == COMMON or sensors_of(part).issuperset(sensors)


def is_shared_by(part: str, pair: str) -> bool:
    """Return whether the two sensors of a pair such as "optical-sar" are to agree in a part.

    Args:
        part: its name.
        pair: names of two sensors with a dash between; names may hold dashes themselves.
    """
    pairs = (f"{a}-{b}" for a, b in permutations(sensors_of(part), 2))
    return part == COMMON or pair in pairs


def find_part(name: str, parts: Sequence[str]) -> str | None:
    """Return the part that a person means: "block:sar+optical" is "optical+sar".

    Args:
        name: as it was given, a block with or without "block:".
        parts: the names of all parts.

    Returns:
        The name among `parts`; None where there is none.
    """
    wanted = name.removeprefix(PREFIX)
    if wanted in parts:
        return wanted
    sensors = sensors_of(wanted)
    return next((part for part in parts if sensors and sensors_of(part) == sensors), None)


def split_into_blocks(blocks: Mapping[str, float], dim: int) -> dict[str, slice]:
    """Return the dimensions of each block in their order, and last those that are unique.

    Args:
        blocks: `{"optical+sar": share of the dimensions, ...}`.
        dim: number of dimensions.

    Raises:
        ConfigError: in one line, for blocks that make no sense.
    """
    if not isinstance(blocks, Mapping):
        raise ConfigError(f"{_KEY}: give the share of each, such as {FORM}; is {blocks!r}")
    seen: dict[frozenset[str], str] = {}
    for name, share in blocks.items():
        sensors = str(name).split("+")
        if blank := next((sensor for sensor in sensors if sensor != sensor.strip()), None):
            raise ConfigError(
                f"{_KEY}: {name!r} has a blank beside a name ({blank!r}); write "
                f"{'+'.join(sensor.strip() for sensor in sensors)!r}"
            )
        if len(set(sensors)) < max(len(sensors), 2) or not all(sensors):
            raise ConfigError(
                f"{_KEY}: {name!r} must name two sensors or more, each once, as optical+sar; what "
                "one sensor sees alone is in the dimensions that no block takes"
            )
        if (other := seen.setdefault(frozenset(sensors), name)) != name:
            raise ConfigError(f"{_KEY}: {other!r} and {name!r} are the same block; give one")
        if not isinstance(share, float | int) or not 0 < share <= 1 + _ROUNDING:
            raise ConfigError(f"{_KEY}: {name!r} is a share of the dimensions, in (0, 1]: {share}")
    total = sum(blocks.values())
    if total > 1 + _ROUNDING:
        raise ConfigError(
            f"{_KEY}: the shares of {', '.join(blocks)} add up to {total:g}; lower them to 1 at "
            "most, and to less where sensors see something alone"
        )
    edges, end = [0], 0.0
    for share in blocks.values():
        end += share
        # two ends that are one dimension apart may round to the same even number: 1.5 and 2.5
        least = int(share * dim >= 1 - _ROUNDING)
        edges.append(max(round(min(end, 1.0) * dim), edges[-1] + least))
    found = {name: slice(*ends) for name, ends in zip(blocks, pairwise(edges), strict=True)}
    for name, dims in found.items():
        if dims.stop == dims.start:
            raise ConfigError(
                f"{_KEY}: {name!r} gets fewer than one of {dim} dimensions; raise its share "
                f"({blocks[name]:g}) or projector.width"
            )
    return found | ({UNIQUE: slice(edges[-1], dim)} if edges[-1] < dim else {})


def refuse_sensors(parts: Sequence[str], sensors: Sequence[str]) -> None:
    """Refuse blocks that name sensors which are not there, and beside blocks names with a "+".

    Args:
        parts: names of parts.
        sensors: those that are trained on.

    Raises:
        ConfigError: naming the block, or the sensor.
    """
    joined_names = [name for name in sensors if "+" in name]
    if joined_names and any(sensors_of(part) for part in parts):
        raise ConfigError(
            f"{_KEY}: the name of sensor {joined_names[0]!r} holds a +, which stands between the "
            "sensors of a block; rename the sensor, or leave blocks out"
        )
    for part in parts:
        if unknown := sorted(sensors_of(part) - set(sensors)):
            raise ConfigError(
                f"{_KEY}: {part!r} names {', '.join(unknown)}, which is not trained on; "
                f"there are {', '.join(sensors)}"
            )


def joined(dims: Sequence[slice]) -> tuple[slice, ...]:
    """Return the same dimensions in as few slices as they take.

    Args:
        dims: slices in rising order, none of which overlap.
    """
    found: list[slice] = []
    for part in dims:
        if found and found[-1].stop == part.start:
            part = slice(found.pop().start, part.stop)
        found.append(part)
    return tuple(found)
