"""Small configurations of every transformer and U-Net class of diffusers, and why some have none."""
