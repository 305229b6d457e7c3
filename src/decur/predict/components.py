"""The principal components of what encoders see of a scene."""

from __future__ import annotations

import numpy as np

from decur.data.loader import LoaderSettings
from decur.data.selection import evenly_spaced
from decur.errors import DataError
from decur.predict.features import FeaturePredictor
from decur.predict.planning import MapPlan
from decur.predict.reading import SceneWindows, read_windows

_WINDOWS = 8  # along each side of a scene, from which the components are found
_PLACES = 256  # places looked at in a window


def fit_components(
    predictor: FeaturePredictor,
    windows: SceneWindows,
    plan: MapPlan,
    loader: LoaderSettings,
    device: str,
) -> None:
    """Find the components from windows all over the scene, the same for each part of a map.

    Args:
        predictor: of features, on the device.
        windows: of the scene.
        plan: of the map.
        loader: windows in a batch, and reading processes.
        device: where the encoders are.

    Raises:
        DataError: if no window has been seen by all sensors.
    """
    rows, columns = plan.windows.rows.starts, plan.windows.columns.starts
    corners = [
        (rows[row], columns[column])
        for row in evenly_spaced(len(rows), _WINDOWS)
        for column in evenly_spaced(len(columns), _WINDOWS)
    ]
    size = loader.batch_size
    batches = [corners[first : first + size] for first in range(0, len(corners), size)]
    found = []
    for batch in read_windows(windows, batches, loader):
        if not batch.corners:
            continue
        maps = predictor.features(batch.sent(device), batch.present).cpu().numpy()
        for one, seen in zip(maps, batch.seen.numpy(), strict=True):  # (D, h, w), (h, w)
            places = one[:, seen].T  # (n, D)
            found.append(places[evenly_spaced(len(places), _PLACES)])
    if not found:
        raise DataError("no window of the scene is seen by all of its sensors; map each by itself")
    predictor.fit(np.concatenate(found).astype(np.float64))
    predictor.to(device)
