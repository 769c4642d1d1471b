"""LeRobot datasets v3.0, written and read with pyarrow and PyAV; the lerobot package itself is never imported."""
