"""A trained model -> scores; the only door to OpenCompass."""
