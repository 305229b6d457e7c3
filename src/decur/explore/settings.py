"""What may be chosen of `decur explore`, importable in a moment."""

from typing import Literal

Layout = Literal["tsne", "pca"]
MOST = 20_000  # samples of a page that a browser still opens
