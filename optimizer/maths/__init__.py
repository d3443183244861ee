"""Pure mathematics: arrays and plain values in, arrays and plain values out. No model, clock, log or configuration."""
