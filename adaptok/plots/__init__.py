"""Pictures (matplotlib, no display needed). Functions return the figure; `save` writes it."""

from adaptok.plots.curves import learning_curve_figure, rollout_figure
from adaptok.plots.drawing import Cut, color_scale, cuts_of, draw_cells
from adaptok.plots.fields import (
    cells_figure,
    panels_figure,
    prediction_figure,
    trajectory_figure,
)
from adaptok.plots.methods import methods_figure
from adaptok.plots.residuals import binned_errors_figure, residual_spectra_figure
from adaptok.plots.rollouts import (
    error_maps_figure,
    rollout_fields_figure,
    rollout_video,
    spectra_figure,
)
from adaptok.plots.style import save

__all__ = [
    "Cut",
    "binned_errors_figure",
    "cells_figure",
    "color_scale",
    "cuts_of",
    "draw_cells",
    "error_maps_figure",
    "learning_curve_figure",
    "methods_figure",
    "panels_figure",
    "prediction_figure",
    "residual_spectra_figure",
    "rollout_fields_figure",
    "rollout_figure",
    "rollout_video",
    "save",
    "spectra_figure",
    "trajectory_figure",
]
