"""FlightLLM's sparse DSP chain: multiply-accumulate slices that skip the zeros of N:M sparse weights."""
