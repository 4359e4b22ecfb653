"""An indicator that learns where errors will be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from adaptok.cells import product
from adaptok.layers.boundary import Boundary, pad_around, pad_beyond
from adaptok.layers.convolution import conv_class
from adaptok.patches import level_grid, patchify
from adaptok.registry import INDICATORS, choice
from adaptok.tokenizers.ignoring import only
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tokenizers.indicators.gradient import GradientIndicator
from adaptok.tokenizers.indicators.variance import channel_variances
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import Depth, LevelSizes, NonNegativeFloat, Positive, checked
from adaptok.utils.magnitude import standardised

FLOOR = 1e-3  # of densities, relative to their mean over the sample
TARGETS = ("change", "error")


@INDICATORS.register("learned")
class LearnedIndicator(nn.Module):
    """Error that a cell as one token makes of the coming change, as a small network predicts it.

    The standardised last frame is cut into the finest nodes that can split; a linear map and
    convolutions over 3 nodes per axis, padded by the boundary's rule, give features of each node,
    which coarser nodes average. Per level, a linear map of these corrects the logarithm of the
    gradient indicator's density. It starts at 0, so that before training the cells are those of
    `gradient` but for a floor of a thousandth of the mean. A node scores at least the sum of its
    children. Scores are relative to the mean of the sample, in grid points.

    No gradient of the model's own loss reaches it: `loss` has to be minimised beside that.
    Training a surrogate does so; for a tokenizer alone see `adaptok.tokenizers.indicator_loss`.

    Args:
        in_channels: channels of the field, those that the tokenizer ignores included (the network
            sees them; the gradient does not).
        sizes: cell size of each level, time first.
        width: features of a node.
        depth: convolutions, each sees one node further.
        target: "change": squared error of each cell's mean of the coming change. "error": the
            squared error of the model's own prediction over the cell, without gradient.
        weight: of the loss in the objective.

    Raises:
        ValueError: cells of one size, which nothing is to be learned for, or an unknown target.
    """

    monotone = True
    learned = False  # cells are chosen without a graph; the loss scores anew
    needs_outcome = True
    sees_all = True

    @checked
    def __init__(
        self,
        in_channels: Positive,
        sizes: LevelSizes,
        *,
        width: Positive = 32,
        depth: Depth = 2,
        target: str = "change",
        weight: NonNegativeFloat = 0.1,
    ):
        super().__init__()
        self.sizes = tuple(tuple(size[1:]) for size in sizes)
        if len(self.sizes) < 2:
            raise ValueError(
                f"a learned indicator chooses between cell sizes, and has {self.sizes} alone: it "
                "would have nothing to learn"
            )
        self.in_channels, self.target, self.weight = in_channels, target, weight
        choice("target", target, TARGETS)
        self.gradient = GradientIndicator()
        self.node = nn.Linear(in_channels * product(self.sizes[-2]), width)
        conv = conv_class(len(self.sizes[0]))
        self.convolutions = nn.ModuleList(conv(width, width, 3) for _ in range(depth))
        heads = [nn.Linear(width + 1, 1) for _ in self.sizes[:-1]]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        field: Field,
        tree: Tree,
        *,
        boundary: Boundary = None,
        seen: Sequence[int] | None = None,
    ) -> Scores:
        """Predicts the error of each node, no less than the sum over its children.

        Args:
            seen: channels that are not ignored; default all.
        """
        if tree.n_levels == 1:
            return field.new_zeros(field.shape[0], 0)
        points = tree.per_level(tree.nodes(field.device).points[: tree.inner])
        densities = self.log_densities(field, tree, boundary, seen)
        errors = [p * log.exp() for p, log in zip(points, densities, strict=True)]
        for level in reversed(range(len(errors) - 1)):
            children = tree.sum_children(errors[level + 1], level)
            errors[level] = torch.maximum(errors[level], children)
        return torch.cat(errors, 1)

    def log_densities(
        self, field: Field, tree: Tree, boundary: Boundary, seen: Sequence[int] | None
    ) -> list[Float[Tensor, "b level"]]:
        """Predicts per level the logarithm of error per grid point, relative to the sample's mean.

        Raises:
            ValueError: a field of other channels, or a tree of other sizes, than it was built for.
        """
        if field.shape[2] != self.in_channels or tree.sizes != self.sizes:
            raise ValueError(
                f"a learned indicator built for {self.in_channels} channel(s) and cells of "
                f"{self.sizes} scores {field.shape[2]} channel(s) and cells of {tree.sizes}"
            )
        start = only(field, seen) if seen is not None else field
        gradient = self.gradient(start, tree, boundary=boundary)
        warm = log_densities_of(gradient.float(), tree)
        features = self.features(field[:, -1:], tree, boundary)  # (b, w, nodes)
        inside = tree.per_level(tree.nodes(field.device).inside[: tree.inner])
        count = inside[-1].float()
        sums, out = features * count, []
        for level in reversed(range(len(warm))):
            if level < len(warm) - 1:
                sums, count = (tree.sum_children(x, level) for x in (sums, count))
            mean = (sums / count.clamp(min=1)).transpose(1, 2)
            known = torch.cat([mean, warm[level][..., None].to(mean.dtype)], 2)
            correction = self.heads[level](known).squeeze(2).float()
            out.append((warm[level] + correction).clamp(-30, 30))  # its powers stay finite
        return out[::-1]

    def features(
        self, frame: Float[Tensor, "b 1 c *s"], tree: Tree, boundary: Boundary
    ) -> Float[Tensor, "b w nodes"]:
        """Computes features of the finest nodes that can split, zero beyond the domain."""
        size = tree.sizes[-2]
        grid = level_grid(tree.shape, size)  # the nodes that meet the domain
        whole = [n * s for n, s in zip(grid, size, strict=True)]
        x = standardised(frame, tuple(range(3, frame.ndim)))
        x = patchify(pad_beyond(x, whole, boundary), (1, *size))  # (b, nodes, c * volume)
        x = gelu(self.node(x.to(self.node.weight.dtype))).transpose(1, 2).unflatten(2, grid)
        for convolution in self.convolutions:
            x = x + gelu(convolution(pad_around(x, [(1, 1)] * len(grid), boundary)))
        beyond = [g - n for n, g in zip(grid, tree.grids[-2], strict=True)]
        pairs = [p for n in reversed(beyond) for p in (0, n)]
        return torch.nn.functional.pad(x, pairs).flatten(2)

    def loss(
        self,
        field: Field,
        tree: Tree,
        outcome: Float[Tensor, "b k *s"],
        *,
        boundary: Boundary = None,
        seen: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """Compares the predicted errors of all nodes with the true ones.

        Per level, the divergence of the normalised errors of a sample from the predicted ones, and
        a tenth of the squared difference of the logarithms of densities; the mean over levels and
        samples. A sample in which nothing happens counts nothing.

        Args:
            outcome: what the target says, channels in units in which they compare.
        """
        predicted = self.log_densities(field, tree, boundary, seen)
        true = true_errors(outcome, tree, self.target)
        levels, wanted = tree.per_level(true), log_densities_of(true, tree)
        nodes = tree.nodes(field.device)
        points = tree.per_level(nodes.points[: tree.inner])
        inside = tree.per_level(nodes.inside[: tree.inner])
        happens = (levels[0].sum(1) > 0).float()
        total = predicted[0].new_zeros(field.shape[0])
        for log, error, density, count, real in zip(
            predicted, levels, wanted, points, inside, strict=True
        ):
            share = error / error.sum(1, keepdim=True).clamp(min=torch.finfo(error.dtype).tiny)
            guess = (log + count.clamp(min=1).log()).masked_fill(~real, -torch.inf)
            guess = guess.log_softmax(1).masked_fill(~real, 0)
            divergence = (torch.special.xlogy(share, share) - share * guess).sum(1)
            square = ((log - density).square() * real).sum(1) / real.sum()
            total = total + (divergence + 0.1 * square) / len(predicted)
        return (total * happens).sum() / happens.sum().clamp(min=1)


def log_densities_of(sums: Float[Tensor, "b inner"], tree: Tree) -> list[Float[Tensor, "b level"]]:
    """Logarithms, per level, of sums over nodes per grid point, relative to the mean of the sample
    and not below `FLOOR`.
    """
    points = tree.per_level(tree.nodes(sums.device).points[: tree.inner])
    levels = tree.per_level(sums)
    mean = levels[0].sum(1, keepdim=True) / points[0].sum()
    mean = mean.where(mean > 0, 1)  # all is 0 then
    parts = zip(levels, points, strict=True)
    return [(own / n.clamp(min=1) / mean + FLOOR).log() for own, n in parts]


def true_errors(
    outcome: Float[Tensor, "b k *s"], tree: Tree, target: str
) -> Float[Tensor, "b inner"]:
    """Squared error of the mean of each node ("change") or sum of squares over it ("error"), summed
    over channels.
    """
    outcome = outcome.detach().float()
    if target == "error":
        return sum_pyramid(outcome.square().sum(1, keepdim=True), tree)[:, 0]
    points = tree.nodes(outcome.device).points[: tree.inner]
    variances = channel_variances(outcome[:, None], tree).sum(2)
    return variances * (points - 1).clamp(min=0)
