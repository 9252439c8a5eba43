"""Experts in int8 and int4: codes and scales, written as a stream."""
