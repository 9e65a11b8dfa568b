"""How many training images a conversion measures on; without torch, for the command line shows the defaults."""

CALIBRATION_IMAGES = 256
"""Images on which the derivative terms are measured; all of them go through the network at once."""

RECALIBRATION_IMAGES = 2000
"""Images on which the statistics of BatchNorm are measured anew."""
