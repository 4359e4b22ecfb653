"""Builds the parts of models from names, classes, factories or parts that are ready."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.decoders.auto import decoder_for
from adaptok.models.one_step import OneStepOptions
from adaptok.models.recording import recorded, with_border
from adaptok.registry import DECODERS, PROCESSORS, TOKENIZERS, Part, choice, is_factory, name_of
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import Dimensions, Positive, checked, shown

SIZES = {"depth": 8, "heads": 6}  # of the parts that do not set them


@runtime_checkable
class Processor(Protocol):
    """Maps tokens to tokens of the same cells."""

    def __call__(self, tokens: TokenSet) -> TokenSet:
        """Returns features of the same or another width, one row per cell."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Paints tokens on the grid of their cells.

    One with an attribute ``reads_field = True`` is called as ``decoder(tokens, field=x,
    scored=scored, boundary=boundary)``: what the tokenizer embedded and scored. Its ``own_sizes``
    names knobs that do not follow those of the model, such as "depth". ``takes_merged = True`` lets
    it get the tokens that a reducer left (`unmerge=False`), whose cells leave holes.
    """

    def __call__(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Returns a field."""
        ...


if TYPE_CHECKING:  # what calls take and give; torch types every call as Any

    class TokenizerModule(nn.Module):
        """A module that is a `Tokenizer`."""

        spec: TokenizerSpec
        controls: tuple[str, ...]

        def cells(
            self,
            field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
            *,
            boundary: Int[Tensor, "..."] | None = None,
            **control: Any,
        ) -> Cells:
            """Scores and refines."""
            ...

        def embed(
            self,
            x: Float[Tensor, "b *tcs"] | Sequence[Tensor],
            cells: Cells,
            *,
            boundary: Int[Tensor, "..."] | None = None,
        ) -> TokenSet:
            """Embeds cells."""
            ...

        def __call__(
            self,
            field: Float[Tensor, "b *tcs"] | Sequence[Tensor],
            *,
            boundary: Int[Tensor, "..."] | None = None,
            **control: Any,
        ) -> TokenSet:
            """``embed(field, cells(field))``."""
            ...

    class ProcessorModule(nn.Module):
        """A module that is a `Processor`."""

        def __call__(self, tokens: TokenSet) -> TokenSet:
            """Returns features, one row per cell."""
            ...

    class DecoderModule(nn.Module):
        """A module that is a `Decoder`."""

        def __call__(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
            """Returns a field."""
            ...

else:
    TokenizerModule = ProcessorModule = DecoderModule = nn.Module


@checked
def create_tokenizer(
    name: Part, *, ndim: Dimensions, in_channels: Positive, dim: Positive, **knobs: Any
) -> TokenizerModule:
    """Builds a tokenizer.

    Args:
        name: registered name; `adaptok.TOKENIZERS.names()` lists them, `.describe(name)` its knobs.
            Or a class or factory; or a tokenizer that is ready, which is checked and returned.
        ndim: space dimensions, 1 to 3.
        in_channels: channels of the field.
        dim: width of the tokens.
        knobs: settings of this tokenizer.

    Raises:
        ValueError: unknown name (with the close matches), unknown knob (with the valid ones),
            values that make no sense, or a tokenizer for other fields.
    """
    wired = {"ndim": ndim, "in_channels": in_channels, "dim": dim}
    part = _with_knobs(name, knobs)
    tokenizer = TOKENIZERS.build(part, **wired)
    spec = tokenizer.spec
    if (spec.ndim, spec.in_channels) != (ndim, in_channels):
        raise ValueError(
            f"tokenizer {name_of(name)} is for {spec.in_channels} channel(s) in {spec.ndim} "
            f"dimension(s), it gets {in_channels} in {ndim}"
        )
    _note(
        tokenizer,
        name,
        with_border({"kind": "tokenizer", **recorded(part), **wired}, "clip"),
    )
    return tokenizer


@checked
def create_processor(name: Part, spec: TokenizerSpec, **knobs: Any) -> ProcessorModule:
    """Builds a processor for tokens of ``tokenizer.spec``.

    Args:
        name: registered name, class or factory, or a processor that is ready.
        knobs: settings of this processor.
    """
    part = _with_knobs(name, knobs)
    processor = PROCESSORS.build(part, spec=spec)
    _note(processor, name, {"kind": "processor", **recorded(part)})
    return processor


@checked
def create_decoder(
    name: Part, spec: TokenizerSpec, out_channels: Positive, **knobs: Any
) -> DecoderModule:
    """Builds a decoder for tokens of ``tokenizer.spec``.

    Args:
        name: registered name, "auto" for the one that suits the tokenizer (see `decoder_for`),
            class or factory, or a decoder that is ready.
        out_channels: of the field that it paints.
        knobs: settings of this decoder.

    Raises:
        ValueError: they do not fit.
    """
    part = _with_knobs(decoder_for(name, spec), knobs)
    decoder = DECODERS.build(part, spec=spec, out_channels=out_channels)
    _note(decoder, name, {"kind": "decoder", **recorded(part)})
    return decoder


def _with_knobs(part: Part, knobs: Mapping[str, Any]) -> Part:
    """The part with these knobs on top of its own, as a mapping unless it has none at all."""
    if not knobs:
        return part
    return {**(part if isinstance(part, Mapping) else {"name": part}), **knobs}


def _note(part: Any, given: Part, config: Mapping[str, Any]) -> None:
    """Notes how a part was built, unless it was ready or says the arguments of its class itself."""
    own = getattr(part, "config", None)
    if part is not given and (own is None or (isinstance(own, Mapping) and "kind" in own)):
        part.config = {**config}


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
) -> tuple[TokenizerModule, ProcessorModule, DecoderModule]:
    """Builds tokenizer, processor and decoder of a model.

    Args:
        in_channels: of a frame as the tokenizer gets it.
        out_channels: of a frame as the decoder returns it.
        dim: width of the tokens.
        shared: knobs that go to each processor and decoder that has them and does not set them.
    """
    built = create_tokenizer(tokenizer, ndim=options.ndim, in_channels=in_channels, dim=dim)
    needs_frames = PROCESSORS.says(processor, "needs_frames")
    if needs_frames and options.history > 1 and options.history_mode == "fold":
        raise ValueError(
            f"processor {name_of(processor)!r} attends over frames of tokens, but a folded history "
            'has one: use history_mode="frames"'
        )
    processor = _shared(PROCESSORS, processor, shared)
    decoder = _shared(DECODERS, decoder_for(decoder, built.spec), shared)
    _warn_of_unread((processor, decoder), shared)
    process = create_processor(processor, built.spec)
    if getattr(process, "unmerge", True) is False and not DECODERS.says(decoder, "takes_merged"):
        raise ValueError(
            f"decoder {name_of(decoder)!r} paints every cell from its own token, and processor "
            f"{name_of(processor)!r} keeps them merged: set unmerge=True"
        )
    paint = create_decoder(decoder, built.spec, out_channels)
    first = in_channels - options.constant_channels  # they come last, also after a history
    for part in (built, paint):
        if (tell := getattr(part, "tell_channels", None)) is not None:
            tell(range(first, in_channels), in_channels)
    return built, process, paint


def _shared(registry: Any, part: Part, shared: Mapping[str, int]) -> Part:
    source, knobs = registry.split(part)
    if not isinstance(source, str) and not is_factory(source):
        return part
    own = registry.says(source, "own_sizes") or ()
    names = [*registry.knobs(source), *registry.wired(source)]  # one may have no default
    sizes = {k: v for k, v in shared.items() if k in names and k not in own}
    return {"name": source, **sizes, **knobs}


def _warn_of_unread(parts: Sequence[Part], shared: Mapping[str, int]) -> None:
    """Warns of sizes that were chosen and that no part reads: saved models may have some."""
    for name, value in shared.items():
        read = any(isinstance(part, Mapping) and name in part for part in parts)
        if value != SIZES[name] and not read:
            warnings.warn(
                f"{name}={value} changes nothing: neither the processor nor the decoder has such a "
                "knob, or they are ready",
                stacklevel=5,
            )


def processed(processor: Any, tokens: TokenSet, *more: Any) -> TokenSet:
    """Calls a processor.

    Raises:
        ValueError: it returns something other than tokens.
    """
    out = processor(tokens, *more)
    if not isinstance(out, TokenSet):
        part = getattr(processor, "__self__", processor)  # of a method
        raise ValueError(
            f"processor {type(part).__name__} must return a TokenSet, such as "
            f"tokens.replace(features=...), got {shown(out)}"
        )
    return out


def tokenize(
    tokenizer: Any,
    scored: Float[Tensor, "b t c *s"],
    x: Float[Tensor, "b t d *s"],
    *,
    boundary: Int[Tensor, "..."] | None,
    cells: Cells | None = None,
    **control: Any,
) -> TokenSet:
    """``embed(x, cells(scored))`` of any `Tokenizer`; one that derives from `CellTokenizer` adds
    the scores of a learned indicator.

    Args:
        scored: what cells are chosen by.
        x: what is embedded.
        boundary: codes.
        cells: are embedded in place of those that the tokenizer would choose.
        control: settings of the tokenizer, unless cells are given.
    """
    if cells is not None:
        return tokenizer.embed(x, cells, boundary=boundary)
    if hasattr(tokenizer, "tokenize"):
        return tokenizer.tokenize(scored, x, boundary=boundary, **control)
    cells = tokenizer.cells(scored, boundary=boundary, **control)
    return tokenizer.embed(x, cells, boundary=boundary)


def mode_of_history(history_mode: str, processor: Part) -> str:
    """Resolves "auto": "frames" if the processor attends over time, else "fold"."""
    if choice("history_mode", history_mode, ("auto", "fold", "frames")) != "auto":
        return history_mode
    return "frames" if PROCESSORS.says(processor, "attends_over_time") else "fold"
