"""Ctrl-C, pressed by a test."""

import contextlib
import os
import signal
import threading


@contextlib.contextmanager
def ctrl_c_after(seconds):
    """Presses Ctrl-C, and again every five seconds until it ends the block: Python drops what is raised while it deletes an object."""
    over = threading.Event()

    def press():
        wait = seconds
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGINT)
            wait = 5.0

    def interrupt(*_):
        if not over.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, before)
