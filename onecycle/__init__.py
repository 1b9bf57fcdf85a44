"""onecycle: find a learning rate, then train by one cycle.

>>> from onecycle import Learner, accuracy, data, models
>>> learn = Learner(data.digits(), models.simple_cnn((1, 16, 32, 10)), metrics=[accuracy])
>>> with learn.no_logging():
...     learn.fit_one_cycle(1, learn.lr_find())
"""

from onecycle import data, metrics, models, schedules, suggest
from onecycle.callback import Callback
from onecycle.callbacks.activation_stats import ActivationStats
from onecycle.callbacks.bn_freeze import BnFreeze
from onecycle.callbacks.csv_logger import CSVLogger
from onecycle.callbacks.ema import EMA
from onecycle.callbacks.grad_norm import GradNorm
from onecycle.callbacks.jsonl_logger import JSONLLogger
from onecycle.callbacks.live_plot import LivePlot
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.mix import CutMix, MixUp
from onecycle.callbacks.mlflow_logger import MLflowLogger
from onecycle.callbacks.optuna_report import OptunaReport
from onecycle.callbacks.plateau import ReduceLROnPlateau
from onecycle.callbacks.profiler import Profiler
from onecycle.callbacks.progress import ProgressBar
from onecycle.callbacks.ray_report import RayReport
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.save_best import SaveBest
from onecycle.callbacks.saving import Checkpoint
from onecycle.callbacks.schedule_free import ScheduleFree
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.callbacks.stopping import EarlyStopping
from onecycle.callbacks.swa import SWA
from onecycle.callbacks.tensorboard_logger import TensorBoardLogger
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.callbacks.wandb_logger import WandbLogger
from onecycle.data.loaders import DataLoaders
from onecycle.epochs_found import EpochFind
from onecycle.exporting import load_model
from onecycle.found import LRFind
from onecycle.interpretation import Interpretation
from onecycle.launch import launch
from onecycle.learner import Learner
from onecycle.metrics import accuracy, error_rate, mae, mse, rmse, top_k_accuracy
from onecycle.muon import muon_split
from onecycle.signals import CancelBatch, CancelEpoch, CancelTrain
from onecycle.tuning.search import Search

__all__ = [
    "EMA",
    "SWA",
    "ActivationStats",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "CancelBatch",
    "CancelEpoch",
    "CancelTrain",
    "Checkpoint",
    "CutMix",
    "DataLoaders",
    "EarlyStopping",
    "EpochFind",
    "GradNorm",
    "Interpretation",
    "JSONLLogger",
    "LRFind",
    "LRFinder",
    "Learner",
    "LivePlot",
    "MLflowLogger",
    "MixUp",
    "OneCycleScheduler",
    "OptunaReport",
    "ParamScheduler",
    "Profiler",
    "ProgressBar",
    "RayReport",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveBest",
    "ScheduleFree",
    "Search",
    "TensorBoardLogger",
    "TorchScheduler",
    "WandbLogger",
    "accuracy",
    "data",
    "error_rate",
    "launch",
    "load_model",
    "mae",
    "metrics",
    "models",
    "mse",
    "muon_split",
    "rmse",
    "schedules",
    "suggest",
    "top_k_accuracy",
]

__version__ = "0.1.0"
