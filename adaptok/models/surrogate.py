"""Surrogate: tokenizer, processor and decoder composed into a one-step PDE model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.mixed import by_shape, of_run, runs
from adaptok.layers.two_stage import ConvLayout
from adaptok.models.one_step import OneStepModel, OneStepOptions, Prepared, at_least_one
from adaptok.registry import DECODERS, PROCESSORS, TOKENIZERS, Part, choice, split_part
from adaptok.tokens import Tokenizer, TokenizerSpec, TokenSet


class Surrogate(OneStepModel):
    """A one-step model on adaptive tokens; physical units in and out.

    Usually built by `create_surrogate`.

    Args:
        tokenizer: from fields to tokens.
        processor: from tokens to tokens.
        decoder: from tokens to fields.
        options: what it reads and returns.
        given: fields of `OneStepOptions`, instead of or on top of `options`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        processor: Callable[[TokenSet], TokenSet],
        decoder: Callable[[TokenSet], Tensor],
        options: OneStepOptions | None = None,
        **given: Any,
    ):
        super().__init__(options, **given)
        self.tokenizer, self.processor, self.decoder = tokenizer, processor, decoder

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the settings that may change from call to call, such as "budget"."""
        return self.tokenizer.controls

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
            control: settings of the tokenizer for this call, such as ``budget=512``.
        """
        if isinstance(field, Tensor):
            options: dict[str, Any] = {"constants": constants, "boundary": boundary}
            return super().forward(field, **options, all_frames=all_frames, **control)
        if constants is not None and not isinstance(constants, (list, tuple)):
            raise ValueError("the constants of a list of fields are a list of (cc, *space)")
        parts = []
        for start, stop in runs([x.shape for x in field]):
            fixed = None if constants is None else torch.stack(list(constants[start:stop]))
            x = self._check(torch.stack(list(field[start:stop])), fixed)
            prepared = self._prepare(x, fixed)
            own = of_run({"boundary": boundary, **control}, start, stop, len(field))
            cells = self.tokenizer.cells(prepared.scored, **own)
            tokens = self.tokenizer.embed(prepared.x, cells, boundary=own["boundary"])
            parts.append((x, prepared, tokens))
        processed = by_shape(self.processor(TokenSet.cat([tokens for *_, tokens in parts])))
        out: list[Tensor] = []
        for (x, prepared, _), tokens in zip(parts, processed, strict=True):
            out += self._in_physical_units(x, prepared, self.decoder(tokens), all_frames)
        return out

    def _predict_normalised(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b t c *s"]:
        cells = self.tokenizer.cells(prepared.scored, boundary=boundary, **control)
        tokens = self.tokenizer.embed(prepared.x, cells, boundary=boundary)
        return self.decoder(self.processor(tokens))

    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Returns the cells that `forward` would use."""
        return self.tokenizer.cells(self.scored(field, constants), boundary=boundary, **control)


def create_tokenizer(
    name: str, *, ndim: int, in_channels: int, dim: int, **knobs: Any
) -> Tokenizer:
    """Builds a registered tokenizer.

    Args:
        name: registered name; `adaptok.TOKENIZERS.names()` lists them, `.describe(name)` its knobs.
        ndim: space dimensions, 1 to 3.
        in_channels: channels of the field.
        dim: width of the tokens.
        knobs: settings of this tokenizer.

    Raises:
        ValueError: unknown name (with the close matches), unknown knob (with the valid ones), or
            values that make no sense.
    """
    choice("ndim", ndim, (1, 2, 3))
    at_least_one(in_channels=in_channels, dim=dim)
    arguments = {"ndim": ndim, "in_channels": in_channels, "dim": dim, **knobs}
    tokenizer = TOKENIZERS.create(name, **arguments)
    tokenizer.config = {"kind": "tokenizer", "name": name, **arguments}
    return tokenizer


def create_processor(name: str, spec: TokenizerSpec, **knobs: Any) -> nn.Module:
    """Builds a registered processor for tokens of ``tokenizer.spec``."""
    return PROCESSORS.create(name, spec=spec, **knobs)


def create_decoder(name: str, spec: TokenizerSpec, out_channels: int, **knobs: Any) -> nn.Module:
    """Builds a registered decoder for tokens of ``tokenizer.spec``; raises ``ValueError`` if they
    do not fit.
    """
    return DECODERS.create(name, spec=spec, out_channels=out_channels, **knobs)


def create_surrogate(
    *,
    ndim: int,
    in_channels: int,
    out_channels: int | None = None,
    history: int = 1,
    tokenizer: Part = "iap",
    processor: Part = "vit",
    decoder: Part = "auto",
    dim: int = 384,
    depth: int = 8,
    heads: int = 6,
    history_mode: str = "auto",
    constant_channels: int = 0,
    normalise: str = "sample",
    score_on: str = "normalised",
    predict: str = "delta",
) -> Surrogate:
    """Builds a surrogate from named parts.

    Each part is a name, or a mapping of "name" and knobs: ``{"name": "iap", "budget": 256}``.
    `depth` and `heads` go to every part that has such a knob and does not set it.

    Args:
        ndim: space dimensions.
        in_channels: fields per frame.
        out_channels: predicted fields; default in_channels.
        history: frames of context.
        decoder: "auto" is "modulated" for the cells of CKM and CSM, else "linear".
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

    Raises:
        ValueError: unknown parts or knobs, or parts that do not go together, with the reason.
    """
    arguments = dict(locals())  # as given: what a saved model is built from again
    options = OneStepOptions.of(
        arguments,
        out_channels=in_channels if out_channels is None else out_channels,
        history_mode=mode_of_history(history_mode, processor),
    )
    channels = (options.token_channels, options.out_channels)
    named = (tokenizer, processor, decoder)
    parts = create_parts(options, *channels, *named, dim=dim, depth=depth, heads=heads)
    surrogate = Surrogate(*parts, options)
    surrogate.config = {"kind": "surrogate", **arguments}
    return surrogate


def create_parts(
    options: OneStepOptions,
    in_channels: int,
    out_channels: int,
    tokenizer: Part,
    processor: Part,
    decoder: Part,
    *,
    dim: int,
    **shared: int,
) -> tuple[Tokenizer, nn.Module, nn.Module]:
    """Builds tokenizer, processor and decoder of a model.

    Args:
        in_channels: of a frame as the tokenizer gets it.
        out_channels: of a frame as the decoder returns it.
        dim: width of the tokens.
        shared: knobs that go to each processor and decoder that has them and does not set them.
    """
    processor_name, _ = split_part(processor, "processor")
    needs_frames = getattr(PROCESSORS.get(processor_name), "needs_frames", False)
    name, knobs = split_part(tokenizer, "tokenizer")
    wired = {"ndim": options.ndim, "in_channels": in_channels, "dim": dim}
    built = create_tokenizer(name, **wired, **knobs)
    if needs_frames and options.history > 1 and options.history_mode == "fold":
        raise ValueError(
            f"processor {processor_name!r} attends over frames of tokens, but a folded history has "
            'one: use history_mode="frames"'
        )
    parts = []
    for registry, part, wired in (
        (PROCESSORS, processor, {"spec": built.spec}),
        (DECODERS, decoder, {"spec": built.spec, "out_channels": out_channels}),
    ):
        name, knobs = split_part(part, registry.kind)
        if name == "auto" and registry is DECODERS:
            name = "modulated" if built.spec.layout is ConvLayout else "linear"
        sizes = {k: v for k, v in shared.items() if k in registry.knobs(name)}
        parts.append(registry.create(name, **wired, **(sizes | knobs)))
    return built, parts[0], parts[1]


def mode_of_history(history_mode: str, processor: Part) -> str:
    """Resolves "auto": "frames" if the processor attends over time, else "fold"."""
    if choice("history_mode", history_mode, ("auto", "fold", "frames")) != "auto":
        return history_mode
    name, _ = split_part(processor, "processor")
    over_time = getattr(PROCESSORS.get(name), "attends_over_time", False)
    return "frames" if over_time else "fold"
