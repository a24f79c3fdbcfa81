"""The OpticalLinear kernel: y = ADC(DAC(x) . W + b + noise), fused, on numpy arrays and CPU torch tensors."""
