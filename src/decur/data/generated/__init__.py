"""Generated pairs of which it is known what the sensors share."""
