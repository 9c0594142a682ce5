"""The paper's experiment on MNIST: flows and samplers at equal evaluations."""
