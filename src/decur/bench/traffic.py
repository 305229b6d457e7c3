"""What processes send each other in a training step, counted from shapes."""

from __future__ import annotations

_FLOAT = 4  # bytes: embeddings travel as float32


def traffic(
    objective_dim: int,
    modalities: int,
    batch: int,
    parameters: int,
    world: int,
    views: int = 2,
    itemsize: int = 4,
) -> dict[str, int]:
    """Bytes that each process sends in a step, by what they are.

    Counted are the collectives that grow with the model or the batch, each as its ring algorithm
    sends it, which no algorithm undercuts. Of a tensor of `b` bytes that a process hands over,
    it sends `(world - 1) b` in an all-gather, `(world - 1) b / world` in a reduce-scatter and
    `2 (world - 1) b / world` in an all-reduce (Patarasuk and Yuan, Bandwidth optimal all-reduce
    algorithms, 2009). Nothing of size K x K is sent: the loss is made of gathered embeddings.

    Left out: the statistics of synchronised batch normalisation (a few numbers for each channel of
    each layer), and the loss's terms, sample counts and presence (a few numbers in all).

    Args:
        objective_dim: width of the embeddings, K.
        modalities: number of sensors.
        batch: samples of a step, over all processes.
        parameters: trained numbers of the model.
        world: number of processes, among which the batch divides.
        views: of each sensor that the objective compares; `DeCUR` two, cross-modal methods
            without intra-modal terms one.
        itemsize: bytes of a parameter, and of its gradient.

    Returns:
        "embeddings", gathered for the loss; "embedding_gradients", on their way back to their
        owners; "gradients" of the parameters, averaged by DDP; and "total".
    """
    own = modalities * views * (batch // world) * objective_dim * _FLOAT  # bytes
    gathered = (world - 1) * own
    averaged = 2 * (world - 1) * parameters * itemsize // world
    found = {"embeddings": gathered, "embedding_gradients": gathered, "gradients": averaged}
    return {**found, "total": sum(found.values())}
