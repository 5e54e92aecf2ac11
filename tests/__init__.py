"""Tests; a package so that the services and the bench can be imported by name."""
