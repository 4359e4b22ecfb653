"""Surrogate: tokenizer, processor and decoder composed into a one-step PDE model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.boundary import check_boundary
from adaptok.layers.mixed import check_list, of_run, painted, runs
from adaptok.models.conserving import Conserve, check_conserving
from adaptok.models.goals import Goal, felt
from adaptok.models.jitter import Jitter, coarsest_of
from adaptok.models.lookahead import (
    Lookahead,
    change_as_scored,
    check_lookahead,
    first_controls,
)
from adaptok.models.one_step import OneStepModel, OneStepOptions, Prepared
from adaptok.models.over_time import NO_TREE, settings_over_time
from adaptok.models.parts import SIZES, create_parts, mode_of_history, processed, tokenize
from adaptok.models.recording import recorded_values, with_border
from adaptok.processors.reuse import can_reuse
from adaptok.registry import Part
from adaptok.tokenizers.coherence import PAST
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import (
    Depth,
    Dimensions,
    NonNegative,
    Positive,
    check_value,
    checked,
    shown,
)


class Surrogate(OneStepModel):
    """A one-step model on adaptive tokens; physical units in and out.

    `create_surrogate` explains the choices, and has the same defaults.

    Args:
        tokenizer: from fields to tokens.
        processor: from tokens to tokens.
        decoder: from tokens to fields.
        options: what it reads and returns.
        dim: width of the tokens, unless the tokenizer is ready.
        depth: of every part that has such a knob and does not set it.
        heads: likewise.
        lookahead: see `create_surrogate`.
        given: fields of `OneStepOptions`, instead of or on top of `options`. A tokenizer that is
            ready says `ndim` and `in_channels` itself.

    Raises:
        ValueError: unknown parts or knobs, or parts that do not go together, with the reason.
    """

    @checked
    def __init__(
        self,
        tokenizer: Part = "iap",
        processor: Part = "vit",
        decoder: Part = "auto",
        options: OneStepOptions | None = None,
        *,
        dim: Positive = 384,
        depth: Depth = SIZES["depth"],
        heads: Positive = SIZES["heads"],
        lookahead: Lookahead | None = None,
        **given: Any,
    ):
        if options is None:
            given["history_mode"] = mode_of_history(given.get("history_mode", "auto"), processor)
            given = _as_the_tokenizer(tokenizer, **given)
            given.setdefault("out_channels", given.get("in_channels"))
        super().__init__(options, **given)
        o, sizes = self.options, {"dim": dim, "depth": depth, "heads": heads}
        channels = (o.token_channels, o.out_channels)
        parts = create_parts(o, *channels, tokenizer, processor, decoder, **sizes)
        self.tokenizer, self.processor, self.decoder = parts
        check_conserving(self.decoder, o)
        named = {"tokenizer": tokenizer, "processor": processor, "decoder": decoder}
        plain = dataclasses.asdict(o) | recorded_values(named) | sizes
        if lookahead is not None:
            check_lookahead(self.tokenizer, self.decoder, o)
        self.lookahead = lookahead
        own = {"dim": self.tokenizer.spec.dim, "lookahead": lookahead}
        self.config = {"kind": "surrogate", **with_border(plain | own, "clip")}

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the settings that may change from call to call, such as "budget"."""
        return self.tokenizer.controls

    @property
    def over_time(self) -> tuple[str, ...]:
        """Names of the settings that are about the steps of a rollout."""
        same = self.in_channels == self.out_channels
        has_goal = same and isinstance(self.tokenizer, TreeTokenizer)
        more = {"goal": has_goal, "reuse": can_reuse(self.processor)}
        return (*settings_over_time(self.tokenizer), *(name for name, has in more.items() if has))

    def _coarsest(self) -> tuple[int, ...]:
        return coarsest_of(self.tokenizer)

    def _shifted(self, prepared: Prepared, jitter: Jitter | None) -> Prepared:
        if jitter and not all(jitter.periodic) and getattr(self.decoder, "conserves", False):
            raise ValueError(
                "jitter pads axes that are not periodic, and cuts off what the decoder "
                "'conservative' has moved there: use conserve=\"all\" with another decoder"
            )
        return super()._shifted(prepared, jitter)

    def forward(
        self,
        field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
        *,
        constants: Float[Tensor, "b cc *s"] | Sequence[Tensor] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        all_frames: bool = False,
        **control: Any,
    ) -> Any:
        """Predicts as every `OneStepModel`; also samples of different size in one batch.

        Args:
            field: (b, history, in_channels, *space), or a list of (history, in_channels, *space)
                of any sizes, whose tokens are processed as one packed batch; then the result is a
                list, too. (history, in_channels) may be (in_channels,) if history is 1.
            constants: static input channels, a list if the fields are one.
            boundary: codes (ndim, 2) or (b, ndim, 2): wall 0, open 1, periodic 2.
            all_frames: with ``history_mode="frames"``, return what follows every frame.
            control: settings of the tokenizer for this call, such as ``budget=512``; `jitter`;
                ``cells``, `Cells` to use in place of those that the tokenizer would choose; and
                ``goal``, see `sensitivity`.
        """
        if isinstance(field, Tensor):
            options: dict[str, Any] = {"constants": constants, "boundary": boundary}
            control = self.with_goal(field, control, **options)
            return super().forward(field, **options, all_frames=all_frames, **control)
        check_list(field)
        check_value(all_frames, bool, "all_frames")
        if control.get("goal") is not None:
            raise ValueError("a goal is one of a field, and this is a list of them")
        listed = isinstance(constants, (list, tuple)) and len(constants) == len(field)
        listed = listed and all(isinstance(each, Tensor) for each in constants or ())
        if constants is not None and not listed:
            raise ValueError("the constants of a list of fields are a list of (cc, *space)")
        parts = []
        for start, stop in runs([x.shape for x in field]):
            fixed = None if constants is None else torch.stack(list(constants[start:stop]))
            x = self._check(torch.stack(list(field[start:stop])), fixed)
            own = of_run({"boundary": boundary, **control}, start, stop, len(field))
            jitter, own = self._jitter_of(own, own["boundary"], x.device)
            prepared = self._look_ahead(self._shifted(self._prepare(x, fixed), jitter), **own)
            tokens = tokenize(self.tokenizer, prepared.scored, prepared.x, **own)
            parts.append((x, prepared, jitter, own["boundary"], tokens))
        whole, at = processed(self.processor, TokenSet.cat([part[-1] for part in parts])), 0
        out: list[Tensor] = []
        for x, prepared, jitter, codes, _ in parts:
            # Not by shape: jitter may have made neighbours equal.
            tokens = whole if len(parts) == 1 else whole.samples(at, at + len(x))
            at += len(x)
            made = self._shifted_back(self._paint(tokens, prepared, codes), jitter)
            out += self._in_physical_units(x, prepared, made, all_frames, codes)
        return out

    if TYPE_CHECKING:  # torch types every call as Any

        @overload
        def __call__(
            self,
            field: Float[Tensor, "b *tcs"],
            *,
            constants: Float[Tensor, "b cc *s"] | None = None,
            boundary: Int[Tensor, "..."] | None = None,
            all_frames: bool = False,
            **control: Any,
        ) -> Float[Tensor, "b t c *s"]: ...

        @overload
        def __call__(
            self,
            field: Sequence[Tensor],
            *,
            constants: Sequence[Tensor] | None = None,
            boundary: Int[Tensor, "..."] | None = None,
            all_frames: bool = False,
            **control: Any,
        ) -> list[Tensor]: ...

        def __call__(self, field: Any, **given: Any) -> Any:
            """Predicts, see `forward`."""
            ...

    def _predict_normalised(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b t c *s"]:
        reuse = [control.pop("reuse")] if "reuse" in control else []
        prepared = self._look_ahead(prepared, boundary, **control)
        given = (prepared.scored, prepared.x)
        tokens = tokenize(self.tokenizer, *given, boundary=boundary, **control)
        return self._paint(processed(self.processor, tokens, *reuse), prepared, boundary)

    @torch.no_grad()
    def _look_ahead(self, prepared: Prepared, boundary: Tensor | None, **control: Any) -> Prepared:
        """Runs the first pass, if there is one, and scores what it predicts."""
        if self.lookahead is None:
            return prepared
        if control.get("cells") is not None and not getattr(self.decoder, "reads_field", False):
            return prepared  # nothing would see the scores
        control = {k: v for k, v in control.items() if k not in ("cells", *PAST)}
        shape = (prepared.x.shape[1], *prepared.x.shape[3:])
        first = first_controls(self.tokenizer, self.lookahead, shape, control)
        decoded = self._aside(prepared, boundary, **first)
        return prepared._replace(scored=change_as_scored(self.options, prepared, decoded))

    def _aside(self, prepared: Prepared, boundary: Tensor | None, **control: Any) -> Tensor:
        """Predicts for the sake of cells. Hooks of the processor count tokens, operations and time
        of the pass that predicts; this one is among the cost of finding cells, so that it passes
        them by.
        """
        given = (prepared.scored, prepared.x)
        tokens = tokenize(self.tokenizer, *given, boundary=boundary, **control)
        module = isinstance(self.processor, nn.Module)
        process = self.processor.forward if module else self.processor
        return self._paint(processed(process, tokens), prepared, boundary)

    def with_goal(
        self,
        field: Tensor,
        control: Mapping[str, Any],
        *,
        constants: Tensor | None = None,
        boundary: Tensor | None = None,
    ) -> dict[str, Any]:
        """Returns settings with the sensitivity that a goal among them stands for.

        Raises:
            ValueError: see `sensitivity`; or jitter beside a goal.
        """
        rest = {name: value for name, value in control.items() if name != "goal"}
        goal = control.get("goal")
        if goal is None or rest.get("cells") is not None:
            return rest
        if rest.get("jitter") is not None:
            raise ValueError("jitter moves the domain, and a goal lies where it is: choose one")
        given: dict[str, Any] = {"constants": constants, "boundary": boundary, **rest}
        return {**rest, "sensitivity": self.sensitivity(field, goal, **given)}

    def sensitivity(
        self,
        field: Float[Tensor, "b *tcs"],
        goal: Goal | Mapping[str, Any],
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Float[Tensor, "b *s"]:
        """Computes how strongly a goal feels each grid point, by one backward pass through
        predictions. Calls with ``goal=`` weigh scores by it, and those with ``sensitivity=`` take
        it, to be used more than once.

        Args:
            field: as in `forward`.
            goal: a `Goal`, or a mapping of its attributes.
            control: settings of the tokenizer for these predictions.

        Returns:
            The squared gradient, see `adaptok.models.goals.felt`.

        Raises:
            ValueError: a goal that does not fit, or a model without cells of a tree.
        """
        goal = Goal.of(goal)
        if "goal" not in self.over_time:
            raise ValueError(NO_TREE.format("goal"))
        field = self._check(field, constants)
        check_boundary(boundary, field.shape[0], self.ndim)
        fixed = None if constants is None else constants.clone()  # no tensor of inference_mode
        _, control = self._jitter_of(control | {"jitter": None}, boundary, field.device)

        def step(window: Tensor) -> Tensor:
            prepared = self._prepare(window, fixed)
            ahead = self._look_ahead(prepared, boundary, **control)
            made = self._aside(ahead, boundary, **control)
            return self._in_physical_units(window, prepared, made, False, boundary)

        unit = self._statistics(field, self.mean, self.std).unit
        scored = unit if self.score_on == "normalised" else torch.ones_like(unit)
        return felt(step, field, goal, unit, scored)

    def _paint(self, tokens: TokenSet, prepared: Prepared, boundary: Tensor | None) -> Tensor:
        given = {"field": prepared.x, "scored": prepared.scored, "boundary": boundary}
        out = painted(self.decoder, tokens, **given)
        self._check_painted(out, prepared.x)
        return out

    def _check_painted(self, out: Any, x: Tensor) -> None:
        """Raises ``ValueError`` for what the state would be broadcast against."""
        if torch.compiler.is_compiling():
            return
        b, t, _, *space = x.shape
        wanted = (b, t, self.out_channels, *space)
        if not isinstance(out, Tensor) or out.shape != wanted:
            raise ValueError(
                f"decoder {type(self.decoder).__name__} must return a field (b, t, c, *space) = "
                f"{wanted}, got {shown(out)}"
            )

    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Returns the cells that `forward` would use; with jitter those of the shifted domain."""
        control = self.with_goal(field, control, constants=constants, boundary=boundary)
        scored = self.scored_ahead(field, constants, boundary=boundary, **control)
        _, control = self._jitter_of(control | {"jitter": None}, boundary, field.device)
        return self.tokenizer.cells(scored, boundary=boundary, **control)

    def scored_ahead(
        self,
        field: Float[Tensor, "b *tcs"],
        constants: Float[Tensor, "b cc *s"] | None = None,
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Float[Tensor, "b t c *r"]:
        """Returns what the indicator sees in `forward`: the predicted change if the model looks
        ahead (see `adaptok.models.lookahead.change_as_scored`), else as `scored`; with jitter in
        the shifted domain.
        """
        field = self._check(field, constants)
        check_boundary(boundary, field.shape[0], self.ndim)
        jitter, control = self._jitter_of(control, boundary, field.device)
        prepared = self._shifted(self._prepare(field, constants), jitter)
        return self._look_ahead(prepared, boundary, **control).scored


@checked
def create_surrogate(
    *,
    ndim: Dimensions,
    in_channels: Positive,
    out_channels: Positive | None = None,
    history: Positive = 1,
    tokenizer: Part = "iap",
    processor: Part = "vit",
    decoder: Part = "auto",
    dim: Positive = 384,
    depth: Depth = SIZES["depth"],
    heads: Positive = SIZES["heads"],
    history_mode: str = "auto",
    constant_channels: NonNegative = 0,
    normalise: str = "sample",
    score_on: str = "normalised",
    predict: str = "delta",
    conserve: Conserve | None = None,
    lookahead: Lookahead | None = None,
) -> Surrogate:
    """Builds a surrogate from parts.

    Each part is a name, or a mapping of "name" and knobs: ``{"name": "iap", "budget": 256}``. In
    place of a name stands a class or factory of your own, which gets what it names of ``ndim``,
    ``in_channels`` and ``dim`` (tokenizer) or ``spec`` and ``out_channels``; a module that is
    ready stands for itself. `depth` and `heads` go to every part that has such a knob and does
    not set it.

    Args:
        ndim: space dimensions.
        in_channels: fields per frame.
        out_channels: predicted fields; default in_channels.
        history: frames of context.
        decoder: "auto" is what suits the tokenizer: "refine" for coarse_fine, "modulated" for CKM
            and CSM, "boxes" for DART, "paste" for APF, "runs" for RLT, else "linear".
        history_mode: "fold" makes them channels of one frame; "frames" keeps them as frames of
            tokens; "auto" keeps them if the processor attends over time, else it folds.
        constant_channels: static input fields, given per call as `constants`.
        normalise: "sample" (by mean and std of the context), "context" (also by those of its
            changes from frame to frame, as CKM and CSM), "dataset" (see
            `Surrogate.set_statistics`) or "none" (physical units in and out).
            "context_absolute" adds the authors' 1e-4 to every std, in the unit of the field; all
            others but "none" give the same in any units.
        score_on: what the indicator sees, "normalised" or "raw".
        predict: "delta" (the change since the last frame) or "state".
        conserve: channels whose sum over the domain every prediction keeps, by a shift of all
            points alike; "all", a list of channels, or None. Samples with an open end, or without
            boundary codes, are left alone. The decoder "conservative" keeps sums by fluxes.
        lookahead: run the model twice: without a graph and at this share of the budget, then with
            cells for the change that it has predicted, which the indicator of the tokenizer (and
            that of the decoder `refine`) sees in place of the field. None: once.

    Raises:
        ValueError: unknown parts or knobs, or parts that do not go together, with the reason.
    """
    arguments = dict(locals())  # as given: what a saved model is built from again
    options = OneStepOptions.of(
        arguments,
        out_channels=in_channels if out_channels is None else out_channels,
        history_mode=mode_of_history(history_mode, processor),
    )
    sizes = {"dim": dim, "depth": depth, "heads": heads}
    surrogate = Surrogate(tokenizer, processor, decoder, options, lookahead=lookahead, **sizes)
    arguments["dim"] = surrogate.tokenizer.spec.dim
    surrogate.config = {"kind": "surrogate", **with_border(recorded_values(arguments), "clip")}
    return surrogate


def _as_the_tokenizer(tokenizer: Part, **given: Any) -> dict[str, Any]:
    """Adds the dimensions and channels that a tokenizer which is ready was built for."""
    spec = getattr(tokenizer, "spec", None)
    if not isinstance(spec, TokenizerSpec):
        return given
    frames = given.get("history", 1) if given["history_mode"] == "fold" else 1
    channels = (spec.in_channels - given.get("constant_channels", 0)) // frames
    return {"ndim": spec.ndim, "in_channels": channels} | given
