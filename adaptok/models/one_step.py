"""What every one-step model shares: options, normalisation, history, change or state, rollouts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.layers.boundary import check_boundary
from adaptok.layers.mixed import check_list
from adaptok.models.conserving import Conserve, conserved_channels, conserving
from adaptok.models.diverging import usable
from adaptok.models.jitter import Jitter, jitter_at, shifted, shifted_back
from adaptok.models.over_time import OF_ROLLOUTS, OverTime
from adaptok.models.schedules import Schedule, create_schedule, settings_at
from adaptok.processors.reuse import Reuse
from adaptok.registry import choice
from adaptok.tokens import as_field
from adaptok.utils.arguments import (
    Dimensions,
    NonNegative,
    Positive,
    check_fields,
    check_value,
    checked,
    shown,
)
from adaptok.utils.magnitude import Moments, divisor, moments, wide

# Buffers of a model that describe the data it is trained on.
STATISTICS = ("mean", "std", "delta_std", "constant_mean", "constant_std")
NORMALISATIONS = ("sample", "context", "dataset", "none", "context_absolute")
LEAST_CHANGE = 1e-4  # std of a change, in units of the std of the field
LEAST_UNIT = 1e-4  # of errors, in that of the training data
AUTHORS_EPSILON = 1e-4  # added to every std by the code of CKM and CSM, in units of the field


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStepOptions:
    """What a one-step model reads and returns; `create_surrogate` explains the choices.

    Attributes:
        ndim: space axes, 1 to 3.
        in_channels: fields per frame.
        out_channels: predicted fields.
        history: frames of context.
        history_mode: "fold" or "frames".
        constant_channels: static input fields.
        normalise: one of `NORMALISATIONS`.
        score_on: "normalised" or "raw".
        predict: "delta" or "state".
        conserve: channels whose sum every prediction keeps, "all", or None.

    Raises:
        ValueError: values with which no one-step model can be built.
    """

    ndim: Dimensions
    in_channels: Positive
    out_channels: Positive
    history: Positive = 1
    history_mode: str = "fold"
    constant_channels: NonNegative = 0
    normalise: str = "sample"
    score_on: str = "normalised"
    predict: str = "delta"
    conserve: Conserve | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if conserved_channels(self.conserve, self.out_channels) and (
            self.in_channels != self.out_channels
        ):
            raise ValueError(
                f"conserve={self.conserve!r} compares sums of prediction and input, and "
                f"{self.out_channels} channels are predicted of {self.in_channels}"
            )
        choice("history_mode", self.history_mode, ("fold", "frames"))
        choice("normalise", self.normalise, NORMALISATIONS)
        choice("score_on", self.score_on, ("normalised", "raw"))
        choice("predict", self.predict, ("delta", "state"))
        if self.history < 2 and self.by_context and self.predict == "delta":
            raise ValueError(
                f'normalise="{self.normalise}" takes the scale of a change from the history, which '
                f"needs at least 2 frames, got {self.history}"
            )
        same = self.out_channels == self.in_channels
        if not same and (self.predict == "delta" or self.normalise != "none"):
            raise ValueError(
                f"{self.out_channels} output for {self.in_channels} input channels have no "
                'statistics or last frame to refer to: use predict="state" and normalise="none"'
            )

    @classmethod
    def of(cls, arguments: Mapping[str, Any], **changes: Any) -> OneStepOptions:
        """Picks the options among the arguments of a function that builds a model."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in arguments.items() if k in names} | changes)

    @property
    def by_context(self) -> bool:
        """Whether mean and std of the changes are those of the history."""
        return self.normalise in ("context", "context_absolute")

    @property
    def token_channels(self) -> int:
        """Channels of a frame as the tokenizer gets it: history folded or not, and constants."""
        frames = self.history if self.history_mode == "fold" else 1
        return self.in_channels * frames + self.constant_channels

    def folded(self, field: Float[Tensor, "b t c *s"]) -> Float[Tensor, "b f k *s"]:
        """Makes the frames of the history channels of one frame, if it is folded."""
        return field.flatten(1, 2).unsqueeze(1) if self.history_mode == "fold" else field


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

    A subclass defines `_predict_normalised`, which maps what `_prepare` makes of the history to
    values or changes in normalised units.

    Args:
        options: what it reads and returns.
        given: fields of `OneStepOptions`, instead of or on top of `options`.

    Attributes:
        config: plain values that build the model again; None if it was composed by hand.
    """

    config: Mapping[str, Any] | None = None
    mean: Tensor
    std: Tensor
    delta_std: Tensor
    constant_mean: Tensor
    constant_std: Tensor

    def __init__(self, options: OneStepOptions | None = None, **given: Any):
        super().__init__()
        o = dataclasses.replace(options, **given) if options else OneStepOptions(**given)
        self.options = o
        self.ndim, self.in_channels, self.out_channels = o.ndim, o.in_channels, o.out_channels
        self.history, self.history_mode = o.history, o.history_mode
        self.constant_channels = o.constant_channels
        self.normalise, self.score_on, self.predict = o.normalise, o.score_on, o.predict
        for name in STATISTICS:
            size = o.constant_channels if name.startswith("constant") else o.in_channels
            start = torch.zeros(size) if name.endswith("mean") else torch.ones(size)
            self.register_buffer(name, start)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the settings that may change from call to call, such as "budget"."""
        return ()

    @property
    def over_time(self) -> tuple[str, ...]:
        """Names of the settings that are about the steps of a rollout, such as "jitter"."""
        return ()

    def set_statistics(
        self,
        mean: Float[Tensor, " c"],
        std: Float[Tensor, " c"],
        delta_std: Float[Tensor, " c"],
        constant_mean: Float[Tensor, " cc"] | None = None,
        constant_std: Float[Tensor, " cc"] | None = None,
        *,
        names: Sequence[str] = (),
    ) -> None:
        """Sets the per-channel statistics of the training data, part of the state dict.

        With ``normalise="dataset"`` they normalise inputs and scale predictions; with "sample" they
        give the size of a change in units of the context's std.

        A constant channel (std 0) gets the size of its mean for a std, or 1, so that nothing is
        divided by 0; one that never changes (`delta_std` 0) is predicted to stay as it is. A
        warning names both.

        Args:
            mean: of each channel.
            std: of each channel.
            delta_std: std of the change from one frame to the next.
            constant_mean: of each constant channel.
            constant_std: of each constant channel.
            names: of the channels and then the constants, for the warning; default their numbers.

        Raises:
            ValueError: another number of channels, or a std that is negative or not finite.
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
            if not bool((value.isfinite() & ((value >= 0) | (not is_std))).all()):
                kind = "finite and not negative" if is_std else "finite"
                raise ValueError(f"{name} must be {kind}, got {value.tolist()}")
            checked[name] = value
        _warn_of_constants(checked, names or range(self.in_channels + self.constant_channels))
        for kind in ("", "constant_"):
            if kind + "std" in checked:
                mean = checked.get(kind + "mean", getattr(self, kind + "mean"))
                checked[kind + "std"] = divisor(mean, checked[kind + "std"])
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
        """Predicts the frame after the last one (t = 1), or the one after each.

        Args:
            field: (b, history, in_channels, *space); (b, c, *space) if history is 1. One of a
                coarser dtype than the model's statistics, such as float16, is normalised in theirs.
            constants: static input channels, if the model was built with some.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.
            all_frames: with ``history_mode="frames"``, return what follows every frame of the
                history (t = history), for losses over all of them.
            control: settings of the tokenizer for this call, such as ``budget=512``; and `jitter`,
                which shifts the domain under the cells and the prediction back: a seed (that of
                step 0), an offset of ndim numbers of grid points, or a `Jitter`.

        Raises:
            ValueError: wrong shapes or codes, an unknown setting, or jitter of a model without
                cells.
        """
        field = self._check(field, constants)
        check_value(all_frames, bool, "all_frames")
        check_boundary(boundary, field.shape[0], self.ndim)
        prepared = self._prepare(field, constants)
        jitter, control = self._jitter_of(control, boundary, field.device)
        moved = self._shifted(prepared, jitter)
        decoded = self._predict_normalised(moved, boundary, control)  # (b, t', c, *space)
        decoded = self._shifted_back(decoded, jitter)
        return self._in_physical_units(field, prepared, decoded, all_frames, boundary)

    def _coarsest(self) -> tuple[int, ...]:
        """Size of the coarsest cell along the space axes, below which domains are shifted."""
        raise ValueError("jitter shifts a domain under its cells, and this model has none")

    def _jitter_of(
        self, control: Mapping[str, Any], boundary: Tensor | None, device: torch.device
    ) -> tuple[Jitter | None, dict[str, Any]]:
        """Takes the shift, and what a single step has no use for, out of the settings of a call."""
        rest = {
            name: value
            for name, value in control.items()
            if name != "jitter" and (name not in OF_ROLLOUTS or isinstance(value, Reuse))
        }
        given = control.get("jitter")
        return jitter_at(given, (0,), self.ndim, device, boundary=boundary), rest

    def _shifted(self, prepared: Prepared, jitter: Jitter | None) -> Prepared:
        if jitter is None:
            return prepared
        coarsest, same = self._coarsest(), prepared.scored is prepared.x
        x = shifted(prepared.x, jitter, coarsest)
        scored = x if same else shifted(prepared.scored, jitter, coarsest)
        return prepared._replace(scored=scored, x=x)

    def _shifted_back(self, decoded: Tensor, jitter: Jitter | None) -> Tensor:
        return decoded if jitter is None else shifted_back(decoded, jitter, self._coarsest())

    def _in_physical_units(
        self,
        field: Tensor,
        prepared: Prepared,
        decoded: Tensor,
        all_frames: bool,
        boundary: Tensor | None,
    ) -> Float[Tensor, "b t c *s"]:
        if all_frames and self.history_mode != "frames":
            raise ValueError(
                'all_frames needs history_mode="frames"; this model folds its history into channels'
            )
        first = 0 if all_frames else -1
        if self.predict == "delta":
            change = prepared.delta_mean + prepared.delta_std * decoded[:, first:]
            out = field[:, first:] + change
        else:
            out = prepared.mean + prepared.std * decoded[:, first:]
        out = out.to(torch.promote_types(field.dtype, decoded.dtype))
        kept = conserved_channels(self.options.conserve, self.out_channels)
        return conserving(out, field[:, first:], kept, boundary) if kept else out

    def _predict_normalised(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b t c *s"]:
        raise NotImplementedError

    def scale(self, field: Float[Tensor, "b *tcs"]) -> Float[Tensor, "..."]:
        """Returns the physical size of one unit of the model's raw output: the std of the change,
        or of the state; broadcasts against (b, t, c, *space).

        Errors are measured in it, so it is at least a ten-thousandth of that of the training data
        (of the std there, if a channel never changes), also of a sample that is constant.
        """
        field = as_field(field, self.ndim, self.in_channels)
        unit = typical = self._per_channel(self.std)
        found = self._statistics(field, self.mean, self.std).std
        if self.predict == "delta":
            found = self._delta_statistics(field, found)[1]
            change = self._per_channel(self.delta_std)
            typical = torch.where(change > 0, change, unit)
        return found if self.normalise == "none" else found.maximum(LEAST_UNIT * typical)

    def prepare(
        self,
        field: Float[Tensor, "b *tcs"],
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t c *s"]:
        """Returns what the tokenizer embeds: normalised, history folded or not, with constants."""
        return self._prepare(self._check(field, constants), constants).x

    def scored(
        self,
        field: Float[Tensor, "b *tcs"],
        constants: Float[Tensor, "b cc *s"] | None = None,
    ) -> Float[Tensor, "b t c *s"]:
        """Returns what the indicator sees: as `prepare`, or raw values with ``score_on="raw"``."""
        return self._prepare(self._check(field, constants), constants).scored

    if TYPE_CHECKING:  # what comes back is of the kind that was given

        @overload
        def rollout(
            self,
            field: Float[Tensor, "b *tcs"],
            n_steps: Positive,
            *,
            constants: Float[Tensor, "b cc *s"] | None = None,
            boundary: Int[Tensor, "..."] | None = None,
            settings: Schedule | Mapping[str, Any] | None = None,
            grad: bool = False,
            **control: Any,
        ) -> Float[Tensor, "b t c *s"]: ...

        @overload
        def rollout(
            self,
            field: Sequence[Tensor],
            n_steps: Positive,
            *,
            constants: Sequence[Tensor] | None = None,
            boundary: Int[Tensor, "..."] | None = None,
            settings: Schedule | Mapping[str, Any] | None = None,
            grad: bool = False,
            **control: Any,
        ) -> list[Tensor]: ...

    @checked
    def rollout(
        self,
        field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
        n_steps: Positive,
        *,
        constants: Float[Tensor, "b cc *s"] | Sequence[Tensor] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        settings: Schedule | Mapping[str, Any] | None = None,
        grad: bool = False,
        **control: Any,
    ) -> Any:
        """Feeds predictions back for `n_steps` steps; (b, n_steps, c, *space).

        A sample that has diverged (see `usable`) is NaN from the next step on, on every device; the
        others are not affected.

        Args:
            field: as in `forward`; for a list the result is a list of (n_steps, c, *space).
            grad: keep the graph of all steps, for gradients through the rollout. The choice of
                cells is piecewise constant, so no gradient goes through it.
            settings: controls of each step (step 0 first), a schedule or what `create_schedule`
                takes; they override `control`.
            control: as in `forward`, of every step. A seed for `jitter` gives each step another
                offset. For cells of a tree also ``hysteresis=h``, which favours the splits of the
                step before (see `TreeTokenizer.cells`), and ``regrid=k``, which chooses cells in
                every k-th step and keeps them in between, with ``buffer=n`` neighbours for what
                moves meanwhile. Where tokens have a price, ``tokens=n`` holds their mean number
                over samples and steps (see `PriceController`), from ``price`` on. Of a surrogate,
                ``goal=...`` weighs scores by what it feels (see `Surrogate.sensitivity`), and
                ``reuse=tolerance`` keeps what blocks computed of tokens that move little (see
                `Reuse`).

        Raises:
            ValueError: the model does not predict the channels that it reads, or `n_steps` < 1.
        """
        if self.out_channels != self.in_channels:
            raise ValueError(
                f"a rollout needs as many output as input channels, got {self.out_channels} and "
                f"{self.in_channels}"
            )
        if isinstance(settings, Mapping):
            settings = create_schedule(settings)
        many = not isinstance(field, Tensor)
        if isinstance(field, Tensor):
            start = [self._check(field, cast("Tensor | None", constants))]
        else:  # each sample as a batch of its own
            check_list(field)
            start = [x[None] if x.ndim > self.ndim + 1 else x[None, None] for x in field]
        windows, out = start, []
        past = OverTime(self, boundary)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            for step in range(n_steps):
                chosen = {**control, **(settings_at(settings, step) if settings else {})}
                pairs = [self.usable(w, first) for w, first in zip(windows, start, strict=True)]
                given: Any = [window[0] for window, _ in pairs] if many else pairs[0][0]
                chosen = past.settings_at(step, chosen, given, constants)
                made = self(given, constants=constants, boundary=boundary, **chosen)
                made, fine = [x[None] for x in made] if many else [made], [ok for _, ok in pairs]
                made = [torch.where(ok, x, torch.nan) for x, ok in zip(made, fine, strict=True)]
                out.append(made)
                made = [x.to(w.dtype) for w, x in zip(windows, made, strict=True)]  # sums are wide
                windows = [torch.cat([w[:, 1:], x], 1) for w, x in zip(windows, made, strict=True)]
        whole = [torch.cat(steps, 1) for steps in zip(*out, strict=True)]
        return [x[0] for x in whole] if many else whole[0]

    def usable(self, window: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces samples that have diverged, see `adaptok.models.diverging.usable`."""
        return usable(window, start, (self.mean.abs() + self.std).max())

    def _check(self, field: Tensor, constants: Tensor | None) -> Tensor:
        field = as_field(field, self.ndim, self.in_channels)
        if field.shape[1] != self.history:
            raise ValueError(f"built for a history of {self.history} frames, got {field.shape[1]}")
        b, space = field.shape[0], tuple(field.shape[3:])
        wanted = (b, self.constant_channels, *space) if self.constant_channels else None
        if wanted is None and isinstance(constants, Tensor) and constants.numel() == 0:
            return field
        if constants is not None and not isinstance(constants, Tensor):
            raise ValueError(f"constants are a tensor of shape {wanted}, got {shown(constants)}")
        given = None if constants is None else tuple(constants.shape)
        if given != wanted:
            raise ValueError(f"constants must have shape {wanted}, got {given}")
        if constants is not None:
            as_field(constants, self.ndim, what="constant field")
        return field

    def _prepare(self, field: Tensor, constants: Tensor | None) -> Prepared:
        dtype = torch.promote_types(field.dtype, self.mean.dtype)
        mean, std, unit = self._statistics(field, self.mean, self.std)
        delta_mean, delta_std = self._delta_statistics(field, std)
        fixed = normal = None
        if self.constant_channels:
            assert constants is not None
            fixed = constants.unsqueeze(1)
            center, _, spread = self._statistics(fixed, self.constant_mean, self.constant_std)
            normal = ((fixed - center) / spread).to(dtype)
        x = self._append(((field - mean) / unit).to(dtype), normal)
        scored = x if self.score_on == "normalised" else self._append(field, fixed)
        return Prepared(scored, x, mean, std, delta_mean, delta_std)

    def _append(self, field: Tensor, constants: Tensor | None) -> Tensor:
        """Folds the history if asked, then appends the constants to every frame."""
        field = self._folded(field)
        if constants is None:
            return field
        return torch.cat([field, constants.expand(-1, field.shape[1], *constants.shape[2:])], 2)

    def _folded(self, field: Tensor) -> Tensor:
        return self.options.folded(field)

    def _statistics(self, x: Tensor, mean: Tensor, std: Tensor) -> Moments:
        """Mean and std that normalise x: (c,) of the training data as given, or the sample's."""
        if self.normalise == "none":
            return Moments(x.new_zeros(()), x.new_ones(()), x.new_ones(()))
        if self.normalise == "dataset":
            mean, std = self._per_channel(mean), self._per_channel(std)
            return Moments(mean, std, std)
        return self._moments(x)

    def _delta_statistics(self, field: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the change from frame to frame; the mean is 0 except by context."""
        zero = field.new_zeros(())
        if self.normalise == "none" or self.predict != "delta":
            return zero, field.new_ones(())
        if self.options.by_context:
            change = self._moments(wide(field).diff(dim=1))
            least = LEAST_CHANGE * std if self.normalise == "context" else 0
            return change.mean, change.std + least
        if self.normalise == "sample":
            ratio = self._per_channel(self.delta_std) / self._per_channel(self.std)
            return zero, std * ratio
        return zero, self._per_channel(self.delta_std)

    def _moments(self, x: Tensor) -> Moments:
        """Mean and std of each sample; by context the unbiased std, as in the code of CKM's
        authors, who also add a constant.
        """
        found = moments(x, (1, *range(3, x.ndim)), correction=int(self.options.by_context))
        if self.normalise != "context_absolute":
            return found
        std = found.std + AUTHORS_EPSILON
        return Moments(found.mean, std, std)

    def _per_channel(self, values: Tensor) -> Tensor:
        """A view of (c,) that broadcasts against (b, t, c, *space)."""
        return wide(values).view(1, 1, -1, *[1] * self.ndim)


def _warn_of_constants(statistics: Mapping[str, Tensor], names: Sequence[object]) -> None:
    own = len(statistics["std"])
    groups = (
        ("std", names[:own], "constant"),
        ("delta_std", names[:own], "never change"),
        ("constant_std", names[own:], "constant"),
    )
    found = []
    for statistic, channels, what in groups:
        values = statistics.get(statistic, torch.ones(len(channels))).tolist()
        still = [str(name) for name, value in zip(channels, values, strict=True) if value == 0]
        if still:
            found.append(f"{', '.join(still)} ({what})")
    if found:
        warnings.warn(
            f"channels without variation in the training data: {'; '.join(found)}", stacklevel=3
        )
