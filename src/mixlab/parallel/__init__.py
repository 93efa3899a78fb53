"""Spreading one model over several processes; model code knows nothing of it."""
