"""The command that draws cells over photographs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")

import vision_pictures
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image


def photo(side: int) -> torch.Tensor:
    """Plain at the left, finer and finer noise to the right."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, side, side, generator=generator)
    return (128 + 240 * torch.linspace(0, 1, side).square() * (noise - 0.5)).to(torch.uint8)


def test_panels_show_what_their_titles_say():
    tokens = [len(cells) for _, _, cells in vision_pictures.thresholds(photo(64), 4)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < tokens[0] < 256
    plain, *changed = vision_pictures.augmentations(photo(64), 4)
    assert torch.equal(plain[1], photo(64))
    assert all(not torch.equal(image, plain[1]) for _, image, _ in changed)


@pytest.mark.slow
def test_pictures_of_own_photographs(tmp_path, capsys, drawn):
    to_pil_image(photo(96)[:, :64]).save(tmp_path / "own.png")
    words = [str(tmp_path / "own.png"), "--out", str(tmp_path), "--patch", "4", "--side", "64"]
    vision_pictures.main(words)
    for name in ("thresholds", "scorers", "augmentations"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 16
    assert "scorers.png" in capsys.readouterr().out
    halves = [len(cells) for _, _, cells in vision_pictures.scorers(photo(64), 4)]
    assert all(100 < n <= 128 for n in halves)
