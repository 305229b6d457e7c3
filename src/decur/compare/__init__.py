"""Methods side by side: cells that run by themselves, tables with spread, published rows."""
