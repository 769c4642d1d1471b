"""One source, two speeds: kernels are plain functions that also compile inside a numba loop.

``@kernel`` leaves a function as it is and teaches numba to compile it when compiled code calls it. A real arm whose
control loop is Python runs the very lines that the twins run compiled, and a debugger can step through them.
"""

from numba.extending import register_jitable as kernel

from robot_rl import geometry

for _function in (
    geometry.quat_multiply,
    geometry.quat_conjugate,
    geometry.quat_normalize,
    geometry.quat_rotate,
    geometry.quat_to_rotvec,
    geometry.rotvec_to_quat,
    geometry.matrix_to_quat,
    geometry.rotation_between,
):
    kernel(_function)

__all__ = ["kernel"]
