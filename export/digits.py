"""scikit-learn's digits at 8 and at 4 bits: models/digits-8bit.onnx and models/digits-4bit.onnx."""

from _common import Recipe, main

from lumina_onnx import OpticalProfile

RECIPES = (
    Recipe("digits-8bit", "digits", OpticalProfile(8, 8, 8, noise_additive=0.02), epochs=60),
    Recipe("digits-4bit", "digits", OpticalProfile(4, 4, 4, noise_additive=0.05), epochs=60),
)

if __name__ == "__main__":
    main(__file__, RECIPES)
