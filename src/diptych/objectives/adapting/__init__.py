"""Objectives for adapting a trained dual encoder: to class names, and without forgetting."""

from __future__ import annotations

from diptych.objectives.adapting.class_names import ClassNames, classification_loss
from diptych.objectives.adapting.distillation import Distillation, similarity_distillation, vector_distance

__all__ = ["ClassNames", "Distillation", "classification_loss", "similarity_distillation", "vector_distance"]
