"""One small training loop on accelerate, its configuration files and its packed data; it knows no system."""
