"""One model for many systems: fields by name, a lead time, and a view per data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Len
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adaptok.cells import Cells
from adaptok.layers.mixed import painted
from adaptok.models.fields import FieldEmbedding, FieldHeads
from adaptok.models.jitter import coarsest_of
from adaptok.models.one_step import OneStepModel, OneStepOptions, Prepared
from adaptok.models.over_time import settings_over_time
from adaptok.models.parts import (
    SIZES,
    DecoderModule,
    ProcessorModule,
    TokenizerModule,
    create_parts,
    mode_of_history,
    processed,
    tokenize,
)
from adaptok.models.recording import recorded_values, with_border
from adaptok.registry import Part, choice
from adaptok.tokenizers.learning import learns_from_outcome
from adaptok.utils.arguments import Depth, Dimensions, Positive, check_value, checked, shown

TRAINED = ("all", "prepost")


class Multiphysics(nn.Module):
    """A tokenizer, processor and decoder between maps from and to named fields.

    Built by `create_multiphysics`, which explains the arguments. It reads and returns normalised
    values; `system` makes a one-step model of one set of fields, in physical units.
    """

    config: dict[str, Any]

    def __init__(
        self,
        tokenizer: TokenizerModule,
        processor: ProcessorModule,
        decoder: DecoderModule,
        options: OneStepOptions,
        *,
        fields: Sequence[str],
        constants: Sequence[str],
        width: int,
        max_lead: int,
    ):
        super().__init__()
        self.tokenizer, self.processor, self.decoder = tokenizer, processor, decoder
        self.options, self.max_lead = options, max_lead
        self.ndim, self.history = options.ndim, options.history
        self.history_mode = options.history_mode
        self.embedding = FieldEmbedding(dict.fromkeys([*fields, *constants]), width)
        self.heads = FieldHeads(fields, width)
        dim = tokenizer.spec.dim
        self.lead = None
        if max_lead > 1:
            self.lead = nn.Sequential(nn.Linear(1, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that are read and predicted."""
        return self.heads.names

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the fields that are only read."""
        return tuple(name for name in self.embedding.names if name not in self.fields)

    def forward(
        self,
        x: Float[Tensor, "b t c *s"],
        inputs: Int64[Tensor, "a c"],
        outputs: Int64[Tensor, "a k"],
        *,
        scored: Float[Tensor, "b t e *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        lead_time: int | Int[Tensor, " b"] = 1,
        **control: Any,
    ) -> Float[Tensor, "b f k *s"]:
        """Predicts what follows each frame (the last one if the history is folded), normalised.

        Args:
            x: normalised fields.
            inputs: which of ``embedding.names`` each channel is, per sample or (a = 1) for all;
                -1 is none.
            outputs: which of ``heads.names`` to predict; -1 gives zeros.
            scored: what the indicator sees; default x.
            boundary: see `OneStepModel.forward`.
            lead_time: in steps, 1 to ``max_lead``.
            control: settings of the tokenizer.
        """
        seen = self.options.folded(x if scored is None else scored)
        lifted = self.options.folded(self.embedding(x, inputs))
        tokens = tokenize(self.tokenizer, seen, lifted, boundary=boundary, **control)
        tokens = tokens.replace(cond=self._condition(lead_time, x))
        read = {"field": lifted, "scored": seen, "boundary": boundary}
        features = painted(self.decoder, processed(self.processor, tokens), **read)
        return self.heads(nn.functional.gelu(features), outputs)

    def cells(
        self,
        scored: Float[Tensor, "b t c *s"],
        *,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Returns the cells that `forward` would use."""
        return self.tokenizer.cells(self.options.folded(scored), boundary=boundary, **control)

    def _condition(self, lead_time: int | Tensor, x: Tensor) -> Tensor | None:
        if isinstance(lead_time, Tensor):
            known = not (lead_time.is_floating_point() or lead_time.dtype == torch.bool)
            if not known or tuple(lead_time.shape) not in ((), (1,), (x.shape[0],)):
                raise ValueError(
                    f"lead_time is a whole number of steps, or one for each of the {x.shape[0]} "
                    f"samples, got {shown(lead_time)}"
                )
        elif not torch.compiler.is_compiling():
            check_value(lead_time, int, "lead_time")
        if self.lead is None:
            # A tensor may be on a device; reading it would wait for the device.
            if isinstance(lead_time, int) and lead_time != 1:
                raise ValueError(f"built for a lead time of 1 step (max_lead=1), got {lead_time}")
            return None
        if isinstance(lead_time, Tensor):
            lead = lead_time.to(x.device).expand(x.shape[0])
        else:  # filled on the device, because copying a number there would wait for it
            lead = torch.full((x.shape[0],), lead_time, device=x.device)
        if lead.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(lead.min()), int(lead.max())
            if low < 1 or high > self.max_lead:
                raise ValueError(
                    f"the lead time must be 1 to {self.max_lead} steps, got {low} to {high}"
                )
        return self.lead(lead[:, None].to(x.dtype) / self.max_lead)

    def predict_mixed(
        self,
        samples: Sequence[Float[Tensor, "..."]],
        fields: Sequence[Sequence[str]],
        **given: Any,
    ) -> list[Tensor]:
        """Predicts a batch of samples with different fields, in normalised units.

        Args:
            samples: one (history, fields, *space) per sample, on one grid.
            fields: names of the channels of each sample; constants among them are only read.
            given: further arguments of `forward`: boundary, lead_time, settings of the tokenizer.

        Returns:
            Per sample (t, fields that are not constant, *space).

        Raises:
            ValueError: fields that do not fit, or samples on different grids.
        """
        if len(samples) != len(fields):
            raise ValueError(f"{len(fields)} lists of names for {len(samples)} sample(s)")
        grids = {(sample.shape[0], *sample.shape[2:]) for sample in samples}
        if len(grids) != 1:
            raise ValueError(
                f"samples of a batch share history and grid, got {sorted(grids)} as (t, *space); "
                "make one batch per resolution"
            )
        for sample, names in zip(samples, fields, strict=True):
            if sample.shape[1] != len(names):
                raise ValueError(f"{sample.shape[1]} channels are named {', '.join(names)}")
        predicted = [[name for name in names if name in self.fields] for names in fields]
        x = pad_sequence([sample.transpose(0, 1) for sample in samples], True).transpose(1, 2)
        numbers = ((self.embedding, fields), (self.heads, predicted))
        inputs, outputs = (
            pad_sequence([torch.tensor(part.numbers(n)) for n in names], True, -1).to(x.device)
            for part, names in numbers
        )
        out = self(x, inputs, outputs, **given)
        return [out[i, :, : len(names)] for i, names in enumerate(predicted)]

    def system(self, fields: Sequence[str], constants: Sequence[str] = ()) -> FieldSystem:
        """Makes a one-step model of some of the fields, which shares the weights.

        Raises:
            ValueError: unknown fields; the message names them and the missing known ones.
        """
        new, missing = self.compare_fields(fields, constants)
        if new:
            known = ", ".join(self.embedding.names)
            raise ValueError(
                f"fields this model does not predict or read: {', '.join(new)}; it knows {known}, "
                f"of which {', '.join(missing) or 'none'} are missing here. `add_fields`, or "
                "adaptok finetune, gives it new ones"
            )
        return FieldSystem(self, fields, constants)

    def compare_fields(
        self, fields: Sequence[str], constants: Sequence[str] = ()
    ) -> tuple[list[str], list[str]]:
        """Returns the names that are new to the model, and its names that are not given."""
        new = [name for name in fields if name not in self.fields]
        new += [name for name in constants if name not in self.embedding.names]
        given = {*fields, *constants}
        return new, [name for name in self.embedding.names if name not in given]

    def add_fields(self, fields: Sequence[str] = (), constants: Sequence[str] = ()) -> None:
        """Adds the new names, with fresh weights; the old weights stay as they are."""
        fields = [name for name in fields if name not in self.fields]
        self.heads.add(fields)
        names = dict.fromkeys([*fields, *constants])
        self.embedding.add(name for name in names if name not in self.embedding.names)
        self.config["fields"] = list(self.fields)
        self.config["constants"] = list(self.constants)

    def train_only(self, what: str, fields: Sequence[str], constants: Sequence[str] = ()) -> None:
        """Freezes the weights of other fields, and with "prepost" all but the maps from and to
        fields (MATEY, Sec. 4.3).

        Raises:
            ValueError: neither "all" nor "prepost".
        """
        self.requires_grad_(choice("mode", what, TRAINED) == "all")
        self.embedding.requires_grad_(True)
        self.heads.requires_grad_(True)
        for part in (self.embedding, self.heads):
            for name, weight in part.weight.items():
                weight.requires_grad_(name in fields or name in constants)


class FieldSystem(OneStepModel):
    """A `Multiphysics` model on one set of fields: physical units in and out.

    Normalises by mean and std of the context, per sample and field.

    Args:
        core: shared with other systems.
        fields: channels of the field.
        constants: channels of the constants.
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(self, core: Multiphysics, fields: Sequence[str], constants: Sequence[str] = ()):
        channels = {"in_channels": len(fields), "out_channels": len(fields)}
        super().__init__(core.options, **channels, constant_channels=len(constants))
        self.core, self.fields, self.constants = core, tuple(fields), tuple(constants)
        inputs, outputs = core.embedding.numbers([*fields, *constants]), core.heads.numbers(fields)
        self.register_buffer("inputs", torch.tensor([inputs]), persistent=False)
        self.register_buffer("outputs", torch.tensor([outputs]), persistent=False)

    @property
    def config(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Plain values that build the model again."""
        model = {k: v for k, v in self.core.config.items() if k != "kind"}
        names = {"fields": list(self.fields), "constants": list(self.constants)}
        return {"kind": "system", **names, "model": model}

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the settings that may change from call to call (not the lead time)."""
        return self.core.tokenizer.controls

    @property
    def over_time(self) -> tuple[str, ...]:
        """Names of the settings that are about the steps of a rollout."""
        return settings_over_time(self.core.tokenizer)

    @property
    def processor(self) -> nn.Module:
        """The processor that all systems share."""
        return self.core.processor

    def _coarsest(self) -> tuple[int, ...]:
        return coarsest_of(self.core.tokenizer)

    def _folded(self, field: Tensor) -> Tensor:
        return field  # the model folds after mapping the fields

    def _predict_normalised(
        self, prepared: Prepared, boundary: Tensor | None, control: dict[str, Any]
    ) -> Float[Tensor, "b t c *s"]:
        control = {"scored": self._seen(prepared.scored), "boundary": boundary, **control}
        return self.core(prepared.x, self.inputs, self.outputs, **control)

    def cells(
        self,
        field: Float[Tensor, "b *tcs"],
        *,
        constants: Float[Tensor, "b cc *s"] | None = None,
        boundary: Int[Tensor, "..."] | None = None,
        **control: Any,
    ) -> Cells:
        """Returns the cells that `forward` would use; with jitter those of the shifted domain."""
        jitter, control = self._jitter_of(control, boundary, field.device)
        prepared = self._shifted(self._prepare(self._check(field, constants), constants), jitter)
        seen = self._seen(prepared.scored)
        return self.core.cells(seen, boundary=boundary, **control)

    def _seen(self, scored: Tensor) -> Tensor:
        """Leaves out the constants, of which each system has its own, if the tokenizer ignores
        constants.
        """
        ignores = getattr(self.core.tokenizer, "ignore", None) == "constants"
        return scored[:, :, : len(self.fields)] if ignores else scored


@checked
def create_multiphysics(
    *,
    ndim: Dimensions,
    fields: Annotated[Sequence[str], Len(1)],
    constants: Sequence[str] = (),
    history: Positive = 1,
    tokenizer: Part = "matey",
    processor: Part = "vit",
    decoder: Part = "auto",
    dim: Positive = 384,
    depth: Depth = SIZES["depth"],
    heads: Positive = SIZES["heads"],
    width: Positive = 16,
    max_lead: Positive = 1,
    history_mode: str = "auto",
    score_on: str = "normalised",
    predict: str = "delta",
) -> Multiphysics:
    """Builds one model for many systems (MATEY, Sec. 3; McCabe et al., 2023).

    Each point's fields are mapped to `width` channels by their names, the tokenizer embeds those,
    the decoder paints `width` channels, and these are mapped to fields by their names.

    Args:
        ndim: space dimensions, the same in all systems.
        fields: names of all fields that are read and predicted.
        constants: names of all static fields, which are only read.
        history: frames of context.
        tokenizer: name, or mapping of name and knobs, as in `create_surrogate`.
        processor: likewise.
        decoder: likewise.
        dim: width of the tokens.
        depth: of every part that has such a knob and does not set it.
        heads: likewise.
        width: channels per point between fields and tokens.
        max_lead: longest lead time in steps; above 1 the lead time conditions the tokens.
        history_mode: as in `create_surrogate`.
        score_on: what the indicator sees, "normalised" or "raw" fields. A system's constants are
            among them if the tokenizer has ``ignore=[]``.
        predict: "delta" or "state".

    Raises:
        ValueError: unknown parts or knobs, or parts that do not go together, with the reason.
    """
    arguments = dict(locals())
    options = OneStepOptions.of(
        arguments,
        in_channels=len(fields),
        out_channels=len(fields),
        history_mode=mode_of_history(history_mode, processor),
    )
    channels = width * (history if options.history_mode == "fold" else 1)
    named, sizes = (tokenizer, processor, decoder), {"dim": dim, "depth": depth, "heads": heads}
    parts = create_parts(options, channels, width, *named, **sizes)
    if any(map(learns_from_outcome, (parts[0], getattr(parts[2], "choice", None)))):
        raise ValueError(
            "a learned indicator is a network of one set of fields, and a model of many systems "
            "has several: score by another indicator"
        )
    if getattr(parts[2], "conserves", False):
        raise ValueError(
            "decoder 'conservative' keeps sums of what it paints, and a model of many systems "
            "makes fields of that: choose another decoder"
        )
    made = {"fields": fields, "constants": constants, "width": width, "max_lead": max_lead}
    model = Multiphysics(*parts, options, **made)
    names = {"fields": list(fields), "constants": list(model.constants)}
    arguments |= {"dim": model.tokenizer.spec.dim, **names}
    model.config = {"kind": "multiphysics", **with_border(recorded_values(arguments), "clip")}
    return model


def create_system(
    *, fields: Sequence[str], constants: Sequence[str], model: Mapping[str, Any]
) -> FieldSystem:
    """Builds a system of a fresh model; `model` has the arguments of `create_multiphysics`."""
    return create_multiphysics(**model).system(fields, constants)
