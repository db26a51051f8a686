"""The tagger: inputs, network, discriminants, working points."""
