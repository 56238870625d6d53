"""Which experts become one, and how many each layer keeps."""
