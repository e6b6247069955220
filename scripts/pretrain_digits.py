"""Pretrain the small backbone that ships with the package, on scikit-learn's digits 0 to 4.

Run it from the project's root; it writes manifold_mixup/digits.safetensors.
"""
