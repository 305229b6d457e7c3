"""A trained model, or encoders, over new data: maps of whole scenes, predictions of data sets."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.predict.features import open_model
    from decur.predict.folder import Predicted, predict_data
    from decur.predict.model import Predictor
    from decur.predict.scene import Mapped, predict
    from decur.predict.settings import PredictSettings
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = [
    "Mapped",
    "PredictSettings",
    "Predicted",
    "Predictor",
    "open_model",
    "predict",
    "predict_data",
]
