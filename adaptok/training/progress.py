"""Shows how far a training is: a bar on a terminal, lines elsewhere and in the log."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from adaptok.evaluation.cost import peak_memory
from adaptok.utils.log import note, size, span

EARLY = (10, 100)  # steps with a line in a long training
LINES = 20  # others, evenly spread
ENDLESS = 1000  # steps between lines if the end is not known in steps
PAUSE = 600.0  # seconds after which a line is due in any case
REFRESH = 0.5  # seconds between two looks at the figures, each of which waits for the device
MEASURED = 5  # steps before time and memory are estimated


class Progress(Callback):
    """Shows steps of the whole training, the time left, loss, tokens per sample and speed.

    Args:
        bar: show a bar on stderr, and write the lines to the log alone.
    """

    def __init__(self, bar: bool):
        self.with_bar = bar
        self._bar: Any = None
        self._step = self._first = 0
        self._last: float = math.inf
        self._start = self._shown = self._printed = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock at the step of the checkpoint, if the training resumes."""
        self._first = self._step = trainer.global_step
        self._last = trainer.estimated_stepping_batches
        self._start = self._shown = self._printed = time.monotonic()
        if self.with_bar and trainer.is_global_zero:
            total = None if math.isinf(self._last) else int(self._last)
            self._bar = tqdm(
                total=total, initial=self._first, unit="step", file=sys.stderr, dynamic_ncols=True
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Counts steps, each of which may have several batches."""
        step, now = trainer.global_step, time.monotonic()
        if step == self._step or not trainer.is_global_zero:
            return
        self._step = step
        if step - self._first == MEASURED and self._last - step >= MEASURED:
            self._say(self._estimate(trainer, now))
        if is_due(step, self._last, now - self._printed):
            self._printed = now
            # The last validation is of an earlier step, and has a line of its own.
            found = {k: v for k, v in self._figures(trainer).items() if not k.startswith("val/")}
            figures = {"step": f"{step:,}/{self._last:,}", **found}
            line = "  ".join(f"{name} {value}" for name, value in figures.items())
            if step < self._last:
                line += f"  left {self._left(now)}"
            self._line(line)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if now - self._shown > REFRESH:
                self._shown = now
                self._bar.set_postfix(self._figures(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says what a validation found, which the line of its step comes too early for."""
        found = {k: v for k, v in self._figures(trainer).items() if k.startswith("val/")}
        if found and trainer.is_global_zero:
            shown = {"step": f"{trainer.global_step:,}/{self._last:,}", **found}
            self._line("  ".join(f"{name} {value}" for name, value in shown.items()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Ends the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, line: str) -> None:
        if self._bar is None:
            self._say(line)
        else:
            note(line)

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def _figures(self, trainer: L.Trainer) -> dict[str, str]:
        return {name: f"{float(v):.4g}" for name, v in trainer.progress_bar_metrics.items()}

    def _per_step(self, now: float) -> float:
        return (now - self._start) / max(self._step - self._first, 1)

    def _left(self, now: float) -> str:
        left = (self._last - self._step) * self._per_step(now)
        return "unknown" if math.isinf(left) else span(left)

    def _estimate(self, trainer: L.Trainer, now: float) -> str:
        memory = peak_memory(trainer.strategy.root_device)
        used = "" if memory is None else f"; {size(memory)} of memory so far"
        per_step = f"{self._per_step(now):.3g} s per step"
        return f"{'estimate':<10} {per_step}, {self._left(now)} without validation{used}"


def is_due(step: int, last: float, waited: float) -> bool:
    """Tells whether a step gets a line: about twenty do, two early ones in a long training, one
    after ten minutes without any, and the last."""
    every = ENDLESS if math.isinf(last) else max(last // LINES, 1)
    return step % every == 0 or (step in EARLY and step < every) or step == last or waited > PAUSE
