"""Actors and learner, apart: gRPC between them, with rows of steps one way and policies the other. No pickle."""
