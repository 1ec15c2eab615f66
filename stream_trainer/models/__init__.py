"""The retrieval models and their losses: pure functions and modules of torch, no I/O."""
