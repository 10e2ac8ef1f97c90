"""Writing text with a trained model: sampling, beams, speculative decoding, quantization."""
