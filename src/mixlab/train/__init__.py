"""Training: the loop, optimizers by role, schedules, checkpoints, metrics, evaluation, the machine.

The names below are imported on first use, so that reading a config does not import torch.
"""

from __future__ import annotations

from mixlab.lazy import on_first_use

_HOME = {
    "train": "mixlab.train.loop",
    "RunConfig": "mixlab.train.config",
    "TrainConfig": "mixlab.train.config",
    "OptimizerConfig": "mixlab.train.config",
    "ScheduleConfig": "mixlab.train.config",
    "CheckpointConfig": "mixlab.train.config",
    "Evaluation": "mixlab.train.evaluate",
    "evaluate": "mixlab.train.evaluate",
    "Run": "mixlab.train.run",
    "load": "mixlab.train.run",
    "open_run": "mixlab.train.run",
    "Machine": "mixlab.train.machine",
    "measure": "mixlab.train.machine",
    "read_metrics": "mixlab.train.metrics",
}
__all__ = sorted(_HOME)
__getattr__, __dir__ = on_first_use(__name__, _HOME)
