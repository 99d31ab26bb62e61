"""When and in what order: assets, checks, sensors, and the demo that materializes them."""
