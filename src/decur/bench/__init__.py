"""Where the time of a training step goes, and what a run will cost: `decur bench`, `decur plan`."""
