"""A training loop on accelerate, its configuration files and its packed data, shared by all systems."""
