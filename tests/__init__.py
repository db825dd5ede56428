"""Tests of hessjax."""
