"""Numbers of training images for measurements; this file does not import torch, so that help texts appear at once."""

CALIBRATION_IMAGES = 256
"""Number of images for the calibration of derivative terms, in one batch."""

RECALIBRATION_IMAGES = 2000
"""Number of images for the running statistics of BatchNorm."""
