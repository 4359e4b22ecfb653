"""Ends a training of several processes when one of them is asked to end."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Termination(Callback):
    """Notes SIGTERM and SIGHUP, and ends all processes between the same two batches.

    Lightning's handler starts a collective wherever the signal meets the process, and waits forever
    for processes that are in another one. With a single process Lightning's stays.
    """

    def __init__(self) -> None:
        self._asked = 0  # number of the signal

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the handlers of signals that are not ignored; Lightning restores them."""
        self._asked = 0
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Ends the training if any process was asked to: all must know, so all wait here.

        Lightning's loop waits just before this for a flag of its own.
        """
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(
            bool(self._asked), all=False
        ):
            raise SIGTERMException

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hands on a signal that came after the start of the last batch."""
        if self._asked:
            signal.raise_signal(self._asked)

    def _note(self, number: int, _: Any) -> None:
        self._asked = number
