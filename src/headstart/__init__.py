"""Transfer learning for your own pictures: a folder in, an evaluated classifier in one file out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded on first use, so that `import headstart` is fast and predicting never imports what only training needs.
_PUBLIC = {
    "train": "training",
    "finetune": "tuning",
    "load": "prediction",
    "Classifier": "prediction",
    "Prediction": "prediction",
    "ImageClassifier": "estimator",
    "Evaluation": "evaluation",
    "load_evaluation": "evaluation_files",
    "save_evaluation": "evaluation_files",
    "scan_dataset": "dataset",
    "split_dataset": "splits",
    "hash_images": "data_check",
    "resolve_duplicates": "data_check",
    "decode_image": "decode",
    "load_backbone": "backbones.loading",
    "Extractor": "features",
    "Picture": "features",
    "extract_features": "features",
    "FeatureCache": "feature_cache",
    "select_head": "heads.selection",
    "build_classifier": "heads.linear",
    "fit_temperature": "calibration",
    "verify_classifier": "verification",
    "write_report": "report.writing",
    "explain": "heat_maps",
    "compare_evaluations": "insight.comparison",
    "find_suspects": "insight.suspects",
    "find_near_copies": "insight.near_copies",
    "compute_learning_curve": "insight.learning_curve",
    "TrainSettings": "config",
    "FitSettings": "config",
    "HeadstartError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ImageError": "errors",
    "BackboneError": "errors",
    "ArtifactError": "errors",
    "MissingDependencyError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'headstart' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"headstart.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from headstart.backbones.loading import load_backbone as load_backbone
    from headstart.calibration import fit_temperature as fit_temperature
    from headstart.config import FitSettings as FitSettings
    from headstart.config import TrainSettings as TrainSettings
    from headstart.data_check import hash_images as hash_images
    from headstart.data_check import resolve_duplicates as resolve_duplicates
    from headstart.dataset import scan_dataset as scan_dataset
    from headstart.decode import decode_image as decode_image
    from headstart.errors import ArtifactError as ArtifactError
    from headstart.errors import BackboneError as BackboneError
    from headstart.errors import ConfigError as ConfigError
    from headstart.errors import DataError as DataError
    from headstart.errors import HeadstartError as HeadstartError
    from headstart.errors import ImageError as ImageError
    from headstart.errors import MissingDependencyError as MissingDependencyError
    from headstart.estimator import ImageClassifier as ImageClassifier
    from headstart.evaluation import Evaluation as Evaluation
    from headstart.evaluation_files import load_evaluation as load_evaluation
    from headstart.evaluation_files import save_evaluation as save_evaluation
    from headstart.feature_cache import FeatureCache as FeatureCache
    from headstart.features import Extractor as Extractor
    from headstart.features import Picture as Picture
    from headstart.features import extract_features as extract_features
    from headstart.heads.linear import build_classifier as build_classifier
    from headstart.heads.selection import select_head as select_head
    from headstart.heat_maps import explain as explain
    from headstart.insight.comparison import compare_evaluations as compare_evaluations
    from headstart.insight.learning_curve import compute_learning_curve as compute_learning_curve
    from headstart.insight.near_copies import find_near_copies as find_near_copies
    from headstart.insight.suspects import find_suspects as find_suspects
    from headstart.prediction import Classifier as Classifier
    from headstart.prediction import Prediction as Prediction
    from headstart.prediction import load as load
    from headstart.report.writing import write_report as write_report
    from headstart.splits import split_dataset as split_dataset
    from headstart.training import train as train
    from headstart.tuning import finetune as finetune
    from headstart.verification import verify_classifier as verify_classifier
