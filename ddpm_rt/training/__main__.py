"""`python -m ddpm_rt.training ...` is `ddpm-rt train ...`, in a form that torchrun can start."""

import sys

from ..cli import main

sys.exit(main(["train", *sys.argv[1:]]))
