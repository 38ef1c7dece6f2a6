"""The four couplings: what a neuron's conductances depend on."""
