"""Training targets several steps ahead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Leads(Dataset):
    """Keeps one random target frame of each window, 1 to `max_lead` steps ahead (MATEY, Sec. 3).

    Adds "lead_time" (), in steps, and makes "time_step" the time to that frame, for equally spaced
    frames. Draws from torch's global generator, which `Seeded` sets per sample.

    Args:
        windows: with at least `max_lead` target frames.
        max_lead: longest lead time in steps.
    """

    def __init__(self, windows: Any, max_lead: int):
        self.windows, self.max_lead = windows, max_lead

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = dict(self.windows[index])
        lead = torch.randint(1, self.max_lead + 1, ())
        sample["target"] = sample["target"][int(lead) - 1 : int(lead)]
        return {**sample, "lead_time": lead, "time_step": sample["time_step"] * lead}
