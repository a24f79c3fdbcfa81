"""5,000 digits of MNIST at 8 and at 4 bits: models/mnist5k-8bit.onnx and models/mnist5k-4bit.onnx."""

from _common import Recipe, main

from lumina_onnx import OpticalProfile

RECIPES = (
    Recipe("mnist5k-8bit", "mnist5k", OpticalProfile(8, 8, 8, noise_additive=0.02)),
    Recipe("mnist5k-4bit", "mnist5k", OpticalProfile(4, 4, 4, noise_additive=0.05)),
)

if __name__ == "__main__":
    main(__file__, RECIPES)
