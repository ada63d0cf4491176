"""Which worker of a cluster gets which block: neighbours to one computer, and nobody idle for their sake."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from zemosaic_pipeline.cluster_stretches import Desk, Stretches, next_step


class Table:
    """Blocks that are sent and answered as told; what is sent is noted."""

    def __init__(self, hosts: dict[str, str], n_blocks: int, most: int) -> None:
        self.hosts, self.n_blocks, self.most = hosts, n_blocks, most
        self.desks: dict[str, list[int]] = {address: [] for address in hosts}
        self.waiting = set(range(min(most, n_blocks)))
        self.answered: dict[int, str] = {}
        self.moved: list[int] = []
        self.stretches = Stretches(most)
        self.assign()

    def assign(self) -> None:
        while True:
            desks = {a: Desk(self.hosts[a], tuple(has)) for a, has in self.desks.items()}
            step = next_step(self.waiting, desks, self.stretches)
            if step is None:
                return
            if step.taken_from:
                assert step.block in self.desks[step.taken_from][1:]
                self.desks[step.taken_from].remove(step.block)
                self.moved.append(step.block)
            else:
                self.waiting.remove(step.block)
            self.desks[step.address].append(step.block)
            assert len(self.desks[step.address]) <= 2
            self.stretches = step.stretches

    def answer(self, address: str) -> None:
        self.answered[self.desks[address].pop(0)] = address
        first = next(block for block in range(self.n_blocks + 1) if block not in self.answered)
        on_their_way = {block for has in self.desks.values() for block in has}
        self.waiting = set(range(min(first + self.most, self.n_blocks))) - on_their_way - set(self.answered)
        self.assign()

    def lose(self, address: str) -> None:
        self.waiting |= set(self.desks.pop(address))
        self.assign()

    def neighbours_apart(self) -> int:
        """Return how many blocks went to another computer than the one above."""
        hosts = [self.hosts[self.answered[block]] for block in sorted(self.answered)]
        return sum(a != b for a, b in pairwise(hosts))


def computers(n: int, n_workers: int) -> dict[str, str]:
    # Workers of different computers in turn: their addresses say nothing of where they are.
    return {f"tcp://{i}": f"pc{i % n}" for i in range(n * n_workers)}


def test_each_computer_has_a_stretch_of_its_own():
    table = Table(computers(3, 4), 48, 48)
    of_host = {host: set() for host in ("pc0", "pc1", "pc2")}
    for address, has in table.desks.items():
        of_host[table.hosts[address]].update(has[:1])
    assert sorted(map(sorted, of_host.values())) == [list(range(k, k + 4)) for k in (0, 8, 16)]
    # The second ones lie one below the other, too.
    assert sorted(block for has in table.desks.values() for block in has) == list(range(24))


@pytest.mark.parametrize("seed", range(6))
def test_all_blocks_are_done_by_uneven_workers_and_few_neighbours_part(seed):
    rng = np.random.default_rng(seed)
    n_computers, n_workers = (3, 4) if seed % 2 else (3, 1)
    hosts = computers(n_computers, n_workers)
    table = Table(hosts, 120, 4 * len(hosts))
    speed = {address: rng.uniform(0.7, 1.4) for address in hosts}
    due = {address: rng.exponential() / speed[address] for address in hosts}
    while len(table.answered) < 120:
        busy = [address for address, has in table.desks.items() if has]
        # Whoever has nothing to do, nothing can be done: all is with workers that are at it.
        if len(busy) < len(hosts):
            assert not table.waiting
            assert all(len(has) < 2 for has in table.desks.values())
        address = min(busy, key=lambda a: due[a])
        due[address] += rng.uniform(0.8, 1.2) / speed[address]
        table.answer(address)
    assert sorted(table.answered) == list(range(120))
    # To whichever is free would part two of three, 79.
    assert table.neighbours_apart() < (40 if n_workers > 1 else 70)


def test_a_computer_that_stands_still_keeps_only_what_it_is_at():
    table = Table(computers(3, 1), 12, 12)
    still = table.desks["tcp://1"][0]
    for _ in range(40):
        for address in ("tcp://0", "tcp://2"):
            if table.desks[address]:
                table.answer(address)
    assert sorted(table.answered) == [block for block in range(12) if block != still]
    assert table.desks["tcp://1"] == [still]
    assert table.moved


def test_what_a_lost_worker_had_goes_to_others_and_a_new_one_takes_part():
    table = Table(computers(2, 2), 16, 16)
    lost = list(table.desks["tcp://0"])
    table.lose("tcp://0")
    table.lose("tcp://2")  # with it the last of its computer
    table.hosts["tcp://9"] = "new"
    table.desks["tcp://9"] = []
    table.assign()
    assert table.desks["tcp://9"]
    while len(table.answered) < 16:
        table.answer(next(address for address, has in table.desks.items() if has))
    assert all(table.answered[block] in ("tcp://1", "tcp://3", "tcp://9") for block in lost)


def test_little_memory_leaves_all_computers_something():
    """Only as many blocks may be on their way as there are computers: no stretch, but nobody waits."""
    table = Table(computers(3, 2), 30, 3)
    assert len([has for has in table.desks.values() if has]) == 3
    assert len({table.hosts[address] for address, has in table.desks.items() if has}) == 3


def test_one_computer_works_from_the_top():
    table = Table(computers(1, 4), 20, 16)
    sent = []
    while len(table.answered) < 20:
        address = min((a for a, has in table.desks.items() if has), key=lambda a: table.desks[a][0])
        sent.append(table.desks[address][0])
        table.answer(address)
    assert sent == sorted(sent)


def test_nobody_is_there():
    assert next_step({0, 1}, {}, Stretches(4)) is None
    assert next_step((), {"tcp://0": Desk("pc")}, Stretches(4)) is None
