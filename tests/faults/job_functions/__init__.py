"""Compute functions of the tests: what `activities.compute` is to the product."""
