"""The contact sheet of a data set: some samples, each with what was predicted for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decur import plotting
from decur.data import PairedDataset, SkipBad
from decur.data.selection import evenly_spaced
from decur.predict.model import HeadPredictor

_SAMPLES = 12
_COLUMNS = 4  # samples in a row
_LETTERS = 26  # letters of an id that are shown


class Sheet:
    """Pictures of evenly spaced samples, gathered while all of them are predicted.

    Args:
        predictor: what predicts.
        data: the samples.
        samples: how many there are.
    """

    def __init__(self, predictor: HeadPredictor, data: PairedDataset, samples: int) -> None:
        self.predictor, self.data = predictor, data
        self.wanted = set(map(int, evenly_spaced(samples, min(samples, _SAMPLES))))
        self.answers: dict[int, NDArray[np.float32]] = {}

    def add(self, index: int, answer: NDArray[np.float32]) -> None:
        """Keep what was predicted for a sample, if it is one of those that are shown.

        Args:
            index: of the sample.
            answer: (K, h, w), see `Predictor.predict`.
        """
        if index in self.wanted:
            self.answers[index] = answer

    def save(self, path: Path) -> Path | None:
        """Draw the sheet and return its path; None where nothing can be drawn, and none is left."""
        if not plotting.available() or not self.answers:
            path.unlink(missing_ok=True)
            return None
        masks = self.predictor.dense
        columns = min(_COLUMNS, len(self.answers))
        rows = -(-len(self.answers) // columns)
        panels = 2 if masks else 1  # the picture, and the mask beside it
        figure, axes = plotting.subplots(rows, columns * panels, width=1.7, height=2.0)
        for axis in axes.ravel():
            axis.axis("off")
        table = np.array(plotting.class_colours(len(self.predictor.classes)), np.uint8)
        for number, (index, answer) in enumerate(sorted(self.answers.items())):
            row, column = divmod(number, columns)
            axis = axes[row, column * panels]
            self._draw_picture(axis, index)
            title = plotting.plain(self.data.ids[index][-_LETTERS:])
            if masks:
                axis.set_title(title, fontsize=7)
                axes[row, column * panels + 1].imshow(table[answer.argmax(axis=0)])
            else:
                ridge = self.predictor.ridge
                words = self.predictor.task.words(answer, least_squares=ridge)
                axis.set_title(f"{title}\n{plotting.plain(words)}", fontsize=7)
        if masks:
            names = self.predictor.classes
            colours = plotting.class_colours(len(names))
            how = {"loc": "outside lower center", "ncols": min(len(names), 6), "fontsize": 8}
            plotting.class_legend(figure, names, colours, **how)
        return plotting.save(figure, path)

    def _draw_picture(self, axis: object, index: int) -> None:
        """Draw the first sensor that sees a sample."""
        images = SkipBad(self.data)[index]["images"]
        for name in self.predictor.modalities:
            if name in images:
                sensor = self.data.modalities[name]
                shown = plotting.render(sensor.scale(images[name]), sensor)
                axis.imshow(shown)  # type: ignore[attr-defined]
                return
