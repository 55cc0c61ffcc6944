"""Measure configurations of a live denoiser, in this process or on workers."""
