"""What every one-step model shares: normalisation, history, change or state, and rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.models.schedules import Schedule, create_schedule
from adaptok.registry import close_matches
from adaptok.tokens import as_field


class Prepared(NamedTuple):
    """What the tokenizer gets, and how to undo the normalisation."""

    scored: Tensor  # (b, t', c', *space): what the indicator sees
    x: Tensor  # (b, t', c', *space): what is embedded
    mean: Tensor  # broadcasts against (b, t, c, *space)
    std: Tensor
    delta_mean: Tensor
    delta_std: Tensor


class OneStepModel(nn.Module):
    """Predicts the next frame of a field from its history; physical units in and out.

    A subclass says how: `_decode` maps what `_prepare` makes of the history to values or changes in
    normalised units. `create_surrogate` explains the arguments.

    Attributes:
        config: how to build the model again, plain values; None where it was composed by hand.
    """

    config: Mapping[str, Any] | None = None
    mean: Tensor
    std: Tensor
    delta_std: Tensor
    constant_mean: Tensor
    constant_std: Tensor

    def __init__(
        self,
        *,
        ndim: int,
        in_channels: int,
        out_channels: int,
        history: int,
        history_mode: str,
        constant_channels: int,
        normalise: str,
        score_on: str,
        predict: str,
    ):
        super().__init__()
        self.ndim, self.in_channels, self.out_channels = ndim, in_channels, out_channels
        self.history, self.history_mode = history, history_mode
        self.constant_channels = constant_channels
        self.normalise, self.score_on, self.predict = normalise, score_on, predict
        for name, channels in (
            ("mean", in_channels),
            ("std", in_channels),
            ("delta_std", in_channels),
            ("constant_mean", constant_channels),
            ("constant_std", constant_channels),
        ):
            value = torch.zeros(channels) if name.endswith("mean") else torch.ones(channels)
            self.register_buffer(name, value)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names that may change from call to call, such as "budget"."""
        return ()

    def set_statistics(
        self,
        mean: Float[Tensor, " c"],
        std: Float[Tensor, " c"],
        delta_std: Float[Tensor, " c"],
        constant_mean: Float[Tensor, " cc"] | None = None,
        constant_std: Float[Tensor, " cc"] | None = None,
    ) -> None:
        """Per-channel statistics of the training data, kept in the state dict.

        With ``normalise="dataset"`` they normalise inputs and scale predictions; with "sample" they
        say how large a change is, in units of the context's std.

        Raises:
            ValueError: another number of channels, or a std that is not positive and finite.
        """
        given = {"mean": mean, "std": std, "delta_std": delta_std}
        given |= {"constant_mean": constant_mean, "constant_std": constant_std}
        checked = {}
        for name, value in given.items():
            if value is None:
                continue
            buffer = getattr(self, name)
            value = torch.as_tensor(value, dtype=buffer.dtype)
            if value.shape != buffer.shape:
                raise ValueError(
                    f"{name} needs {buffer.numel()} channels, got {tuple(value.shape)}"
                )
            is_std = name.endswith("std")
            if not bool((value.isfinite() & ((value > 0) | (not is_std))).all()):
                kind = "positive and finite" if is_std else "finite"
                raise ValueError(f"{name} must be {kind}, got {value.tolist()}")
            checked[name] = value
        for name, value in checked.items():  # all or none
            getattr(self, name).copy_(value)

    def forward(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        all_frames: bool = False,
        **control: Any,
    ) -> Float[Tensor, "b t c *s"]:
        """The frame after the last one (t = 1), or the one after each.

        Args:
            field: (b, history, in_channels, *space); (b, c, *space) where history is 1.
            constants: static input channels, where the model was built with some.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.
            all_frames: with ``history_mode="frames"``, return what follows every frame of the
                history (t = history), for losses over all of them.
            control: settings of the tokenizer for this call, such as ``budget=512``.
        """
        field = self._check(field, constants)
        if all_frames and self.history_mode != "frames":
            raise ValueError(
                'all_frames needs history_mode="frames"; this model folds its history into channels'
            )
        prepared = self._prepare(field, constants)
        decoded = self._decode(prepared, boundary, control)  # (b, t', out_channels, *space)
        first = 0 if all_frames else -1
        if self.predict == "delta":
            change = prepared.delta_mean + prepared.delta_std * decoded[:, first:]
            return field[:, first:] + change
        return prepared.mean + prepared.std * decoded[:, first:]

    def _decode(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b t c *s"]:
        raise NotImplementedError

    def scale(self, field: Float[Tensor, "b *tcs"]) -> Float[Tensor, "..."]:
        """What one unit of the model's raw output is in physical units: the std of the change, or
        of the state; broadcasts against (b, t, c, *space).
        """
        field = as_field(field, self.ndim, self.in_channels)
        _, std = self._statistics(field)
        return self._delta_statistics(field, std)[1] if self.predict == "delta" else std

    def prepare(
        self,
        field: Float[Tensor, "b *tcs"],
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t c *s"]:
        """What the tokenizer embeds: normalised, history folded or not, constants appended."""
        return self._prepare(self._check(field, constants), constants).x

    @torch.no_grad()
    def rollout(
        self,
        field: Float[Tensor, "b *tcs"],
        n_steps: int,
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        settings: Schedule | Mapping[str, Any] | None = None,
        **control: Any,
    ) -> Float[Tensor, "b n c *s"]:
        """Feeds predictions back for `n_steps` steps.

        Args:
            settings: controls of each step (step 0 first), a schedule or what `create_schedule`
                takes; they win over `control`.

        Raises:
            ValueError: the model does not predict the channels that it reads.
        """
        if self.out_channels != self.in_channels:
            raise ValueError(
                f"a rollout needs as many output as input channels, got {self.out_channels} and "
                f"{self.in_channels}"
            )
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        if isinstance(settings, Mapping):
            settings = create_schedule(settings)
        window, out = self._check(field, constants), []
        for step in range(n_steps):
            chosen = control | (settings(step) if settings else {})
            out.append(self(window, constants=constants, boundary=boundary, **chosen))
            window = torch.cat([window[:, 1:], out[-1]], 1)
        return torch.cat(out, 1)

    def _check(self, field: Tensor, constants: Tensor | None) -> Tensor:
        field = as_field(field, self.ndim, self.in_channels)
        if field.shape[1] != self.history:
            raise ValueError(f"built for a history of {self.history} frames, got {field.shape[1]}")
        b, space = field.shape[0], tuple(field.shape[3:])
        given = None if constants is None else tuple(constants.shape)
        wanted = (b, self.constant_channels, *space) if self.constant_channels else None
        none_wanted = wanted is None and constants is not None and constants.numel() == 0
        if given != wanted and not none_wanted:
            raise ValueError(f"constants must have shape {wanted}, got {given}")
        if constants is not None and not none_wanted:
            as_field(constants, self.ndim, what="constant field")
        return field

    def _prepare(self, field: Tensor, constants: Tensor | None) -> Prepared:
        mean, std = self._statistics(field)
        delta_mean, delta_std = self._delta_statistics(field, std)
        x, scored = (field - mean) / std, field
        if self.constant_channels:
            assert constants is not None
            fixed = constants.unsqueeze(1)
            x, scored = self._append(x, self._normal_constants(fixed)), self._append(scored, fixed)
        else:
            x, scored = self._append(x, None), self._append(scored, None)
        scored = x if self.score_on == "normalised" else scored
        return Prepared(scored, x, mean, std, delta_mean, delta_std)

    def _append(self, field: Tensor, constants: Tensor | None) -> Tensor:
        """Folds the history where asked, then appends the constants to every frame."""
        if self.history_mode == "fold":
            field = field.flatten(1, 2).unsqueeze(1)
        if constants is None:
            return field
        return torch.cat([field, constants.expand(-1, field.shape[1], *constants.shape[2:])], 2)

    def _statistics(self, field: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalise == "none":
            return field.new_zeros(()), field.new_ones(())
        if self.normalise in ("sample", "context"):
            return self._moments(field, (1, *range(3, field.ndim)))
        view = (1, 1, -1, *[1] * self.ndim)
        return self.mean.view(view), self.std.view(view)

    def _delta_statistics(self, field: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the change from frame to frame; the mean is 0 but for "context"."""
        zero = field.new_zeros(())
        if self.normalise == "none" or self.predict != "delta":
            return zero, field.new_ones(())
        if self.normalise == "context":
            return self._moments(field.diff(dim=1), (1, *range(3, field.ndim)))
        view = (1, 1, -1, *[1] * self.ndim)
        if self.normalise == "sample":
            return zero, std * (self.delta_std / self.std).view(view)
        return zero, self.delta_std.view(view)

    def _moments(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and std of the sample at hand; of "context" as in the authors' code of CKM."""
        context = self.normalise == "context"
        std, mean = torch.std_mean(x, dim=axes, correction=int(context), keepdim=True)
        return mean, std + (1e-4 if context else 1e-8)

    def _normal_constants(self, constants: Tensor) -> Tensor:
        if self.normalise in ("sample", "context"):
            mean, std = self._moments(constants, tuple(range(3, constants.ndim)))
            return (constants - mean) / std
        if self.normalise == "none":
            return constants
        view = (1, 1, -1, *[1] * self.ndim)
        return (constants - self.constant_mean.view(view)) / self.constant_std.view(view)


def check_arguments(
    history: int,
    in_channels: int,
    out_channels: int,
    constant_channels: int,
    choices: Mapping[str, str],
) -> None:
    """Raises ``ValueError`` for what no one-step model can be built with."""
    accepted = {
        "history_mode": ("auto", "fold", "frames"),
        "normalise": ("sample", "context", "dataset", "none"),
        "score_on": ("normalised", "raw"),
        "predict": ("delta", "state"),
    }
    for name, value in choices.items():
        if value not in accepted[name]:
            near = close_matches(value, accepted[name])
            known = ", ".join(accepted[name])
            raise ValueError(f"{name} must be one of {known}, got {value!r}{near}")
    if history < 1:
        raise ValueError(f"history must be at least 1 frame, got {history}")
    if history < 2 and choices["normalise"] == "context" and choices["predict"] == "delta":
        raise ValueError(
            'normalise="context" takes the scale of a change from the history, which needs at '
            f"least 2 frames, got {history}"
        )
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if constant_channels < 0:
        raise ValueError(f"constant_channels must not be negative, got {constant_channels}")
    same = out_channels == in_channels
    if not same and (choices["predict"] == "delta" or choices["normalise"] != "none"):
        raise ValueError(
            f"{out_channels} output for {in_channels} input channels have no statistics or last "
            'frame to refer to: use predict="state" and normalise="none"'
        )
