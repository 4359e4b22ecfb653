"""A model around adaptok's parts, as its author writes it; pyright checks it strictly."""

import torch
from torch import Tensor, nn

import adaptok
from adaptok.tree import Tree, sum_pyramid


class Energy:
    """Scores cells by the energy in them."""

    def __call__(self, field: Tensor, tree: Tree, *, boundary: Tensor | None = None) -> Tensor:
        return sum_pyramid(field.square().sum(2).sum(1, keepdim=True), tree)[:, 0]


class Mixer(nn.Module):
    def __init__(self, spec: adaptok.TokenizerSpec, *, hidden: int = 32) -> None:
        super().__init__()
        first, last = nn.Linear(spec.dim, hidden), nn.Linear(hidden, spec.dim)
        self.mlp = nn.Sequential(first, nn.GELU(), last)

    def forward(self, tokens: adaptok.TokenSet) -> adaptok.TokenSet:
        x: Tensor = tokens.features + self.mlp(tokens.features)
        return tokens.replace(features=x)


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24, budget=40)
        self.processor = adaptok.create_processor(Mixer, self.tokenizer.spec, hidden=16)
        self.decoder = adaptok.create_decoder("auto", self.tokenizer.spec, 2)
        self.head = nn.Linear(24, classes)

    def forward(self, field: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.processor(self.tokenizer(field))
        logits: Tensor = self.head(tokens.pool("mean", weight="volume"))
        return logits, self.decoder(tokens)


def main() -> tuple[Tensor, Tensor]:
    device, field = torch.device("cpu"), torch.randn(2, 1, 2, 16, 16)
    model = Classifier(10).to(device)
    logits, painted = model(field)
    optimizer = torch.optim.AdamW([*model.tokenizer.parameters(), *model.decoder.parameters()])
    indicator: adaptok.Indicator = Energy()
    tokenizer = {"name": "composed", "indicator": indicator}
    surrogate = adaptok.create_surrogate(
        ndim=2, in_channels=2, tokenizer=tokenizer, processor=Mixer, dim=24
    )
    after = surrogate(field, budget=40)
    (logits.sum() + painted.sum() + after.sum()).backward()
    optimizer.zero_grad()
    cells = surrogate.tokenizer.to(device).cells(field, budget=40)
    q = torch.zeros(len(cells), 2, 8)
    print(len(cells), adaptok.attend(q, q, q, cells.groups()).shape)
    return logits, after


if __name__ == "__main__":
    main()
