"""Whether a vLLM connector does what vLLM and its users rely on: `python -m kvtier.conformance my_plugin:Connector`."""
