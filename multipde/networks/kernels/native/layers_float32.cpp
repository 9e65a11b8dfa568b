// The layers of a block in training in float32.

#include "training_float32.h"

#include "block.h"
