"""Pure int8 models: exact arithmetic, the EGG byte model, its perturbations and the ±1 update."""
