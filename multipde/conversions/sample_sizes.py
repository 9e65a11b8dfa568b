"""Numbers of training images for measurements, in a file without torch because the command line shows them."""

CALIBRATION_IMAGES = 256
"""Number of images for the calibration of derivative terms, in one batch."""

RECALIBRATION_IMAGES = 2000
"""Number of images for the running statistics of BatchNorm."""
