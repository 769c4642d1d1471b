"""A process with the topics, QoS and parameters of CRISP's Cartesian impedance controller, around a kinematic arm.

It ignores targets while they have more than one publisher, as CRISP does. Run as a script; ends on SIGTERM.
"""

import sys

import numpy as np

from controllers import messages
from controllers.arm_parameters import STIFFNESS
from controllers.ros import RosContext, run_until_signal
from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat
from robot_rl.types import ArmState

HZ, SPEED_MPS, SPEED_RADPS = 200.0, 0.3, 1.5


def main(namespace: str, arm: str, dof: int) -> int:
    from geometry_msgs.msg import PoseStamped, TwistStamped
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data, qos_profile_system_default
    from sensor_msgs.msg import JointState

    names = messages.names_of(arm, dof)
    with RosContext() as ros:
        node = ros.add(Node("cartesian_impedance_controller", context=ros.context, namespace=namespace))
        for index, name in enumerate(STIFFNESS):
            node.declare_parameter(name, 600.0 if index < 3 else 30.0)
        pose = node.create_publisher(PoseStamped, "current_pose", qos_profile_sensor_data)
        twist = node.create_publisher(TwistStamped, "current_twist", qos_profile_sensor_data)
        joints = node.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        pos_m, quat_xyzw = np.array([0.5, 0.0, 0.25]), np.array([1.0, 0.0, 0.0, 0.0])
        target = [pos_m.copy(), quat_xyzw.copy()]

        def take(message):
            if node.count_publishers("target_pose") <= 1:
                wanted = messages.from_pose(message.pose)
                target[:] = [wanted.pos_m, wanted.quat_xyzw]

        def tick():
            nonlocal pos_m, quat_xyzw
            gap, turn = target[0] - pos_m, rotation_between(target[1], quat_xyzw)
            far_m, far_rad = np.linalg.norm(gap), np.linalg.norm(turn)
            pos_m = pos_m + gap * min(1.0, SPEED_MPS / HZ / max(far_m, 1e-9))
            turn = turn * min(1.0, SPEED_RADPS / HZ / max(far_rad, 1e-9))
            quat_xyzw = quat_normalize(quat_multiply(rotvec_to_quat(turn), quat_xyzw))
            zeros = np.zeros(6)
            state = ArmState(0.0, np.zeros(dof), np.zeros(dof), np.zeros(dof), pos_m, quat_xyzw, zeros, zeros, 0.0)
            out = messages.to_state(state, names, node.get_clock().now().nanoseconds)
            joints.publish(out.joints)
            twist.publish(out.twist)
            pose.publish(out.pose)

        node.create_subscription(PoseStamped, "target_pose", take, qos_profile_system_default)
        node.create_timer(1.0 / HZ, tick)
        return run_until_signal(ros)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
