"""Actors and learner, apart: gRPC between them, with rows of steps one way and policies the other. No pickle."""

import os

# Read when grpc is imported. Processes that we start run another program at once, and need no care of gRPC's; what it
# has to say, calls say.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
