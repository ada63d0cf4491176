"""Which worker of a cluster gets which block of rows: neighbours go to one computer. Numbers only, no Dask.

Blocks read some rows around themselves. What two of them need is read from the shared folder once when one computer
works on both within a short time: the second one finds it in the memory of the system (page cache). So a computer
claims a stretch of blocks that lie one below the other; its workers take them from the top. A worker that finds nothing
of its own computer's takes the last waiting block of another one's stretch, and then what another worker has not begun
yet: nobody stands idle for the sake of neighbours, and a slow computer keeps nothing but what it is at work on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

__all__ = ["Desk", "Step", "Stretch", "Stretches", "next_step"]

# Calls that a worker has at a time: the one at work, and one so that it need not wait for the next.
MOST_AT_DESK = 2
# Blocks of a stretch where half of those that may be on their way are enough for all computers: what one worker read
# serves the next block as well. The other half lets the rest go on while a slow computer is at its stretch.
_LONG_STRETCH = 8


@dataclass(frozen=True)
class Desk:
    """A worker: the computer it runs on, and the blocks it was sent and has not answered, in the order of sending."""

    host: str
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stretch:
    """Blocks ``first <= block < end`` and the computer that claimed them."""

    first: int
    end: int
    host: str


@dataclass(frozen=True)
class Stretches:
    """What computers have claimed of a series of blocks, from its first block on without a gap.

    Attributes
    ----------
    most : int
        Blocks that may be on their way at a time, from the first one that is not finished.
    claimed : tuple of Stretch
    """

    most: int
    claimed: tuple[Stretch, ...] = ()


@dataclass(frozen=True)
class Step:
    """A block that is to be sent to a worker.

    Attributes
    ----------
    block : int
    address : str
    taken_from : str
        The worker that has it and shall not begin it; empty: it was waiting.
    stretches : Stretches
        What is claimed from now on.
    """

    block: int
    address: str
    taken_from: str
    stretches: Stretches


def next_step(waiting: Collection[int], desks: Mapping[str, Desk], stretches: Stretches) -> Step | None:
    """Return which block a worker gets next; None when all have enough, or nothing is left.

    Parameters
    ----------
    waiting : collection of int
        Blocks that may be sent and are with nobody.
    desks : mapping of str to Desk
        The workers that may get blocks, by their addresses.
    stretches : Stretches
        As the last step left it.
    """
    in_order = sorted(waiting)
    hosts = Counter(desk.host for desk in desks.values())
    by_need = sorted(desks, key=lambda address: (len(desks[address].blocks), address))
    idle = [address for address in by_need if not desks[address].blocks]

    def own(addresses: list[str]) -> Step | None:
        for address in addresses:
            found = _of_own_computer(in_order, desks[address].host, hosts, stretches)
            if found is not None:
                return Step(found[0], address, "", found[1])
        return None

    if (step := own(idle)) is not None:
        return step
    if idle and in_order:
        return Step(_from_another(in_order, stretches), idle[0], "", stretches)
    behind = [(block, address) for address, desk in desks.items() for block in desk.blocks[1:]]
    if idle and behind:
        block, other = min(behind)
        return Step(block, idle[0], other, stretches)
    return own([address for address in by_need if len(desks[address].blocks) < MOST_AT_DESK])


def _of_own_computer(
    in_order: list[int], host: str, hosts: Mapping[str, int], stretches: Stretches
) -> tuple[int, Stretches] | None:
    """Return the first block for a worker of a computer.

    It is of what that computer has claimed, of what one that is gone had, or of what nobody has claimed, which it then
    claims.
    """
    claimed = stretches.claimed
    for stretch in claimed:
        if stretch.host == host or stretch.host not in hosts:
            inside = [block for block in in_order if stretch.first <= block < stretch.end]
            if inside:
                return inside[0], stretches
    begin = claimed[-1].end if claimed else 0
    fresh = [block for block in in_order if block >= begin]
    if not fresh:
        return None
    # A block for each worker of the computer at least, as far as all computers have room for a stretch.
    share = max(1, stretches.most // len(hosts))
    n_blocks = max(min(hosts[host], share), min(_LONG_STRETCH, share // 2))
    end = max(begin + n_blocks, fresh[0] + 1)
    return fresh[0], replace(stretches, claimed=(*claimed, Stretch(begin, end, host)))


def _from_another(in_order: list[int], stretches: Stretches) -> int:
    """Return the last waiting block of the first stretch that has some: its own workers go on from its top."""
    for stretch in stretches.claimed:
        inside = [block for block in in_order if stretch.first <= block < stretch.end]
        if inside:
            return inside[-1]
    return in_order[0]
