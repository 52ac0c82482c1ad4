"""The classic optimizers of deep learning, each written once, in tensor operations.

``ScratchAdam(model.parameters())`` takes the place of ``torch.optim.Adam(model.parameters())``: the
same signature, the same checkpoints and, bit for bit, the same training run.
"""

from .adagrad import ScratchAdaGrad
from .adam import ScratchAdam, ScratchAdamW
from .groups import decay_groups
from .optimizer import ScratchOptimizer
from .rmsprop import ScratchRMSProp
from .sgd import ScratchMomentum, ScratchSGD

__version__ = "0.2.0"

# torch's spellings, so that `Scratch` before torch's name is all of the migration.
ScratchAdagrad = ScratchAdaGrad
ScratchRMSprop = ScratchRMSProp

__all__ = [
    "ScratchAdaGrad",
    "ScratchAdagrad",
    "ScratchAdam",
    "ScratchAdamW",
    "ScratchMomentum",
    "ScratchOptimizer",
    "ScratchRMSProp",
    "ScratchRMSprop",
    "ScratchSGD",
    "decay_groups",
]
