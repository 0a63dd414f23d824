"""Training of the reference U-Net: `ddpm-rt train`; `load_checkpoint` in .checkpoint reads what it leaves."""
