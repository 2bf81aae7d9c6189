"""What a potential or a function of the mode raises, does within an attempt, or is called in."""

import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
from double_well import ALA2, MODES, double_well

import modejump


def test_what_a_function_of_the_mode_raises_is_raised_and_nothing_moves():
    move = modejump.Move(modejump.Model(MODES), mode=lambda x: 1 / 0)
    x = np.array([1.0, 0.5])
    with pytest.raises(ZeroDivisionError):
        move.attempt(x, double_well, step=0)
    nowhere = modejump.Move(modejump.Model(MODES), mode=lambda x: -1)
    outcome = nowhere.attempt(x, double_well, step=0)
    assert (outcome.fate, outcome.accepted) == ("wrong_mode", False) and (outcome.x == x).all()


def test_what_a_function_of_the_mode_raises_is_raised_in_its_own_thread(monkeypatch):
    """Also if another thread's attempt runs before this one's looks for what was raised."""
    this = threading.current_thread()

    def mode(x):
        if threading.current_thread() is this:
            raise ValueError("of this thread")
        return int(x[0] > 0)

    move, x, fates = modejump.Move(modejump.Model(MODES), mode=mode, seed=5), np.array([1.0, 0.5]), []
    attempt = modejump.move._attempt

    def and_then_another(*arguments):
        attempt(*arguments)
        if threading.current_thread() is this:
            with ThreadPoolExecutor(1) as other:
                fates.append(other.submit(move.attempt, x, double_well, step=1).result().fate)

    monkeypatch.setattr(modejump.move, "_attempt", and_then_another)
    with pytest.raises(ValueError, match="of this thread"):
        move.attempt(x, double_well, step=0)
    assert fates[0] in ("accepted", "rejected")


def test_ctrl_c_during_an_attempt_is_raised(monkeypatch):
    """While the library works Python notes it, and handles it when a potential is called: before its first line."""
    model = modejump.Model(ALA2)
    move, x, dropped = modejump.Move(model, proposals=500, seed=1), model.sample(1)[0][0], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.err_msg or ""))
    for k in range(12):
        with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.02 + 0.003 * k):
            for step in range(10_000):
                move.attempt(x, lambda x: np.zeros(len(x)), step=step)
    assert not [message for message in dropped if "ctypes callback" in message]


def test_an_exception_whose_text_is_no_text_is_raised_again(generator):
    def fails(_):
        raise ValueError("cannot read /data/\udce9.dat")

    move = modejump.Move(generator, proposals=4, seed=1)
    for step in range(20):
        with pytest.raises(ValueError, match="cannot read"):
            move.attempt(np.array([1.0, 0.5]), fails, step=step, reduced_potential=1.0)


@pytest.mark.parametrize(
    "within",
    [
        lambda move, x: move.attempt([1.0, 0.5], double_well, step=1),
        lambda move, x: move.set_temperature(300),
        lambda move, x: move.statistics(),
    ],
)
def test_a_move_is_not_used_within_its_own_attempt(generator, within):
    move = modejump.Move(generator, seed=5)

    def calls_back(x):
        within(move, x)
        return double_well(x)

    with pytest.raises(modejump.Error, match="in use by the attempt that called back"):
        move.attempt([1.0, 0.5], calls_back, step=0, reduced_potential=0.25)
    assert move.attempt([1.0, 0.5], double_well, step=0).fate in ("accepted", "rejected")


def test_threads_wait_for_each_other(generator):
    """As a progress bar that asks for statistics while the dynamics runs."""
    move, over = modejump.Move(generator, seed=5), threading.Event()
    counts = []

    def watch():
        while not over.is_set():
            counts.append(move.statistics().attempts)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(2000):
        move.attempt([1.0, 0.5], double_well, step=step)
    over.set()
    watcher.join()
    assert counts == sorted(counts) and move.statistics().attempts == 2000


def test_what_was_raised_is_forgotten(generator):
    """With the locals of its frames; ctypes hides a part of the circle from the garbage collector."""
    class Large:
        pass

    def fails(x):
        large = Large()
        alive.append(weakref.ref(large))
        raise ValueError("no power")

    alive, move = [], modejump.Move(generator, seed=5)
    for step in range(5):
        with pytest.raises(ValueError, match="no power"):
            move.attempt([1.0, 0.5], fails, step=step, reduced_potential=0.25)
    gc.collect()
    assert [reference() for reference in alive] == [None] * 5


def test_what_the_potential_raises_is_raised_again(generator):
    class Interrupted(Exception):
        pass

    def fails(x):
        raise Interrupted("no power")

    move = modejump.Move(generator, seed=5)
    with pytest.raises(Interrupted, match="no power"):
        move.attempt([1.0, 0.5], fails, step=0, reduced_potential=0.25)
    for known in (0.25, None):
        with pytest.raises(ValueError, match=r"has shape \(\), not \(1,\)"):
            move.attempt([1.0, 0.5], lambda x: 1.0, step=0, reduced_potential=known)
    # the move goes on as if nothing had happened
    assert move.attempt([1.0, 0.5], double_well, step=1).fate in ("accepted", "rejected")
    assert move.attempt([1.0, 0.5], lambda x: np.full(len(x), np.nan), step=2, reduced_potential=0.25).fate == "non_finite"
