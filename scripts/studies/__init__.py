"""The parts of scripts/evidence.py."""
