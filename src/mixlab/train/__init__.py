"""Training: the loop, optimizers by role, schedules, checkpoints, metrics, evaluation, the machine.

The names below are imported on first use, so that reading a config does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixlab.lazy import on_first_use

if TYPE_CHECKING:
    from mixlab.train.config import CheckpointConfig as CheckpointConfig
    from mixlab.train.config import OptimizerConfig as OptimizerConfig
    from mixlab.train.config import RunConfig as RunConfig
    from mixlab.train.config import ScheduleConfig as ScheduleConfig
    from mixlab.train.config import TrainConfig as TrainConfig
    from mixlab.train.evaluate import Evaluation as Evaluation
    from mixlab.train.loop import train as train
    from mixlab.train.machine import Machine as Machine
    from mixlab.train.machine import measure as measure
    from mixlab.train.metrics import read_metrics as read_metrics
    from mixlab.train.run import Run as Run
    from mixlab.train.run import load as load
    from mixlab.train.run import open_run as open_run
else:
    __all__, __getattr__, __dir__ = on_first_use(__name__)
