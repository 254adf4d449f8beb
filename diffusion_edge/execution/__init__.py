"""Ways to run a family's denoiser, one file each: eager, OpenVINO, torch.compile.

    way: what a way is     ways: their names     check: whether one makes the same latents
    choose: which one a stage takes     remembered: what was chosen on this machine before

A way that cannot run a model says why, and the next one is taken.
"""
