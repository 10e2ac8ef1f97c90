"""Text generation with a trained model: sampling, beam search, speculative decoding, int8/int4."""
