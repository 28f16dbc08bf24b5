"""Hugging Face folders: config.json with safetensors in, and out again."""
