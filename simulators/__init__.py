"""The simulator: replays Amazon reviews (or generated logs) as the shop's streams, and evaluates offline."""
