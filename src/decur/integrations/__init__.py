"""Adapters for tools that evaluate and fine-tune encoders: import the module of the tool."""
