"""Folders of Hugging Face transformers: writing a trained model as one, and reading one."""
