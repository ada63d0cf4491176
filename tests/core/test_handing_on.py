"""Pieces that are handed on while the next one is made."""

import threading
import time

import pytest

from zemosaic_core.handing_on import HandingOn


def test_pieces_arrive_one_by_one_in_their_order_while_the_next_is_made() -> None:
    got, made_meanwhile, open_now = [], threading.Event(), []

    def receive(k: int) -> None:
        open_now.append(k)
        assert len(open_now) == 1
        if k == 0:
            assert made_meanwhile.wait(5)
        time.sleep(0.01)
        got.append(k)
        open_now.pop()

    with HandingOn(receive) as hand_on:
        hand_on(0)
        made_meanwhile.set()
        for k in range(1, 5):
            hand_on(k)
        hand_on.wait()
        assert got == [0, 1, 2, 3, 4]
        hand_on(5)
    assert got == [0, 1, 2, 3, 4, 5]


def test_errors_of_the_receiver_are_raised() -> None:
    def refuse(k: int) -> None:
        raise OSError(f"no room for piece {k}")

    made = []

    def make_three() -> None:
        with HandingOn(refuse) as hand_on:
            for k in range(3):
                made.append(k)
                hand_on(k)

    with pytest.raises(OSError, match="piece 0"):
        make_three()
    assert made == [0, 1]
    with pytest.raises(OSError, match="piece 7"), HandingOn(refuse) as hand_on:
        hand_on(7)


def test_another_error_stays_and_what_was_handed_over_is_finished() -> None:
    got = []

    def receive(k: int) -> None:
        time.sleep(0.02)
        got.append(k)

    def stop_after_one() -> None:
        with HandingOn(receive) as hand_on:
            hand_on(1)
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        stop_after_one()
    assert got == [1]
