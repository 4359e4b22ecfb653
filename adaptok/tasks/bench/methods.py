"""Methods of track T1: their overrides of `adaptok train`, and what they cost in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from adaptok.registry import TOKENIZERS
from adaptok.tasks.bench.sets import FieldSet
from adaptok.tokenizers.ladder import with_ladder

TAPS = 3  # of the decoder refine, per spacing and axis
# Of the points that adaptive help sees, and channels over its result: those of the default model.
SHARE, SMOOTH = (TOKENIZERS.knobs("coarse_fine")[knob] for knob in ("share", "smooth"))
LINEAR = "decoder=linear"
Words = list[str]


@dataclass(frozen=True)
class Method:
    """A method of the track.

    Attributes:
        words: overrides for a set and the size of uniform cells that are as many as its tokens.
        tokens: whether a budget decides anything.
        fitted: the key whose number brings it to equal operations or seconds; None for none.
        factor: operations of a forward pass over those of uniform cells, or for methods without
            tokens, operations per grid point.
        help: whether `refine` decodes.
        needs: a module that may not be installed.
        extra: what brings it.
    """

    words: Callable[[FieldSet, int], Words]
    tokens: bool = True
    fitted: str | None = "size.dim"
    factor: float = 1.0
    help: bool = False
    needs: str = ""
    extra: str = ""


def installed(methods: Mapping[str, Method]) -> dict[str, Method]:
    """Leaves out, with a warning, what needs a module that is not installed."""
    found = {}
    for name, method in methods.items():
        if method.needs and find_spec(method.needs) is None:
            warnings.warn(
                f"{name} is left out: pip install 'adaptok[{method.extra}]'", stacklevel=2
            )
        else:
            found[name] = method
    return found


def tokenizer_words(name: str, about: FieldSet, patch: int) -> Words:
    """Chooses a registered tokenizer with as many tokens as uniform cells of a size.

    Raises:
        ValueError: it has neither a budget nor a size.
    """
    budget = about.tokens(patch)
    part = with_ladder(name, about.shape, budget)
    knobs: dict[str, Any] = {} if isinstance(part, str) else dict(part)  # type: ignore[arg-type]
    knobs.pop("name", None)
    known = TOKENIZERS.knobs(name)
    if "budget" in known:
        knobs["budget"] = budget
    elif "size" in known:
        knobs["size"] = patch
    else:
        raise ValueError(
            f"tokenizer {name!r} has neither a knob budget nor a knob size, so that no budget of "
            f"tokens can be asked of it; its knobs: {', '.join(known)}"
        )
    knobs = {knob: value for knob, value in knobs.items() if value is not None}
    values = {k: f"[{','.join(map(str, v))}]" if _is_list(v) else v for k, v in knobs.items()}
    return [f"tokenizer={name}", *(f"tokenizer.{knob}={value}" for knob, value in values.items())]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _tokens(name: str, *more: str) -> Callable[[FieldSet, int], Words]:
    return lambda about, patch: [*tokenizer_words(name, about, patch), *more]


def _helped(name: str, share: float) -> Callable[[FieldSet, int], Words]:
    """The same operations at all points as at a share of them with more channels."""

    def words(about: FieldSet, patch: int) -> Words:
        width = round(about.width * SHARE / share)
        helped = ["decoder=refine", f"decoder.share={share}", f"decoder.width={width}"]
        return [*tokenizer_words(name, about, patch), *helped, f"decoder.smooth={SMOOTH}"]

    return words


def _random(about: FieldSet, patch: int) -> Words:
    return [*tokenizer_words("random", about, patch), "tokenizer.seed=${seed}", LINEAR]


def _cyclic(name: str) -> Callable[[FieldSet, int], Words]:
    """Patches of the size and of twice the size, drawn in training and by turns in a test, so that
    no call has more tokens than the budget."""

    def words(about: FieldSet, patch: int) -> Words:
        settings = f"[{{patch_size: {patch}}}, {{patch_size: {2 * patch}}}]"
        chosen = [f"tokenizer={name}", f"tokenizer.patch_sizes=[{patch},{2 * patch}]"]
        return [*chosen, "decoder=modulated", "schedule=random", f"schedule.settings={settings}"]

    return words


def _baseline(name: str, width: str, *words: str) -> Callable[[FieldSet, int], Words]:
    """A model without tokens, with the width of the set."""
    return lambda about, patch: [*words, width.format(about.widths[name])]


METHODS = {
    "persistence": Method(lambda about, patch: ["model=persistence"], False, None, 0.0),
    "uniform": Method(_tokens("uniform", LINEAR)),
    "uniform_help": Method(_helped("uniform", 1.0), help=True),
    "coarse_fine": Method(_helped("uniform", SHARE), help=True),
    "random": Method(_random, factor=1.3),
    "radial": Method(_tokens("radial", LINEAR), factor=1.3),
    "oracle": Method(_tokens("near_best", LINEAR), factor=1.5),
    "iap": Method(_tokens("iap", LINEAR), factor=1.3),
    "near_best": Method(_tokens("near_best", LINEAR), factor=1.5),
    "iap_help": Method(_helped("iap", 1.0), factor=1.3, help=True),
    "ckm_cyclic": Method(_cyclic("ckm"), factor=1.5),
    "csm_cyclic": Method(_cyclic("csm"), factor=2.0),
    "lower_resolution": Method(
        _baseline(
            *("lower_resolution", "+model.base.width={}"),
            *("model=lower_resolution", "model.base={name: unet}"),
        ),
        tokens=False,
        fitted="+model.base.width",
        factor=2.0e4,
    ),
    "cnextunet": Method(
        _baseline(
            *("cnextunet", "model.width={}", "model=well", "model.architecture=unet_convnext")
        ),
        tokens=False,
        fitted="model.width",
        factor=8.0e4,
        needs="timm",
        extra="vision",
    ),
    "fno": Method(
        _baseline("fno", "model.width={}", "model=fno"),
        tokens=False,
        fitted="model.width",
        factor=4.0e4,
    ),
    "tfno": Method(
        _baseline("tfno", "model.width={}", "model=well", "model.architecture=tfno"),
        tokens=False,
        fitted="model.width",
        factor=4.0e4,
        needs="neuralop",
        extra="tfno",
    ),
}
REFERENCE = "coarse_fine"  # whose operations and seconds others get: the default of `adaptok train`


def operations(method: Method, about: FieldSet, patch: int) -> float:
    """Counts the operations of a forward pass per sample; a multiplication and an addition are two.
    Of what is no uniform grid, it is an estimate.
    """
    points = 1
    for n in about.shape:
        points *= n
    if not method.tokens:
        return method.factor * points
    n, d, inputs = about.tokens(patch), about.dim, about.channels * about.frames
    total = about.depth * (16 * n * d**2 + 4 * n**2 * d)
    total += 2 * points * (inputs + about.channels) * d
    total *= method.factor
    if method.help:
        k, w = len(about.shape), about.width
        total += 2 * SHARE * points * (inputs * 2 * TAPS**k * w + w * w + w * about.channels)
        total += 4 * points * (inputs + about.channels) * TAPS**k * SMOOTH
    return total
