"""One page to look through a data set by its embeddings."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.explore.run import explore
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = ["explore"]
